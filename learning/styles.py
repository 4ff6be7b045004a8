"""The mood that a task type's feedback asks for, as one fixed sentence of ours.

Pure. A mood is a word of an allow-list; the sentence behind it is the operator's, never a
sender's. It belongs to prompts that outputs are generated with, never to what is trained.
"""

from collections.abc import Mapping

MOODS: Mapping[str, str] = {
    "calm": "Write calmly and without haste.",
    "concise": "Say it in few words.",
    "hype": "Write with energy and excitement.",
    "neutral": "Write in a neutral, matter-of-fact tone.",
    "playful": "Write playfully, with a light touch of humour.",
    "serious": "Write in a serious tone.",
    "warm": "Write in a warm and friendly tone.",
}
"""As shipped: mood -> what it adds to the prompt of a generation."""

LEAST_LEADING = 0.1
"""A mood that is wanted less than so much leads nothing."""


def known_mood(text: str, moods: Mapping[str, str]) -> str | None:
    """The mood of the allow-list that a sender means; None for any other word."""
    name = text.strip().casefold()
    return next((mood for mood in moods if mood.casefold() == name), None)


def leading_mood(profile: Mapping[str, float], moods: Mapping[str, str]) -> str | None:
    """The mood that is wanted most; the first by name of several alike; None when none is."""
    wanted = [(-weight, mood) for mood, weight in profile.items() if mood in moods]
    if not wanted or -min(wanted)[0] < LEAST_LEADING:
        return None
    return min(wanted)[1]


def style_sentence(profile: Mapping[str, float], moods: Mapping[str, str] = MOODS) -> str:
    """What the profile of a task type adds to a prompt that generates; often nothing.

    `profile` is how much each mood is wanted, in [0, 1]. The answer is one of the sentences of
    `moods`, so that nothing that a producer sent can be in it.
    """
    mood = leading_mood(profile, moods)
    return "" if mood is None else moods[mood]
