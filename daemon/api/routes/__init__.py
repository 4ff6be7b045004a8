"""The addresses of the API, one file per noun. Each `router(...)` takes what it works with."""
