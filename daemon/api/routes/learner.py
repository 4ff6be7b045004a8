"""The learning loop as functions: send an output or a feedback, and hear what was decided."""

from http import HTTPStatus

from fastapi import APIRouter

from daemon.api.problems import OF_A_CHANGE, problems_of
from daemon.api.requests import CycleRequest, ProcessFeedback, ProcessOutput, ProcessTask
from daemon.api.v1 import v1_router
from daemon.learner import (
    BatchCycle,
    FeedbackProcessed,
    Learner,
    LearningTask,
    OutputProcessed,
    TaskProcessed,
)


def router(learner: Learner) -> APIRouter:
    """One address for each function that has none elsewhere."""
    routes = v1_router("/process", "process")
    answers = problems_of(*OF_A_CHANGE)

    @routes.post("/output", responses=answers)
    async def output(request: ProcessOutput) -> OutputProcessed:
        """Judge and store one output; a batch that it fills is sealed before the answer."""
        return await learner.process_output(**vars(request))

    @routes.post("/feedback", responses=answers)
    async def feedback(request: ProcessFeedback) -> FeedbackProcessed:
        """Take in what people made of an output, and all that follows from it."""
        return await learner.process_feedback(**vars(request))

    @routes.post("/task", responses=answers | problems_of(HTTPStatus.BAD_GATEWAY))
    async def task(request: ProcessTask) -> TaskProcessed:
        """Have a model answer, and process its answer as an output that nobody judged."""
        return await learner.process_task(**vars(request))

    @routes.post("/cycle", responses=answers)
    async def cycle(request: CycleRequest) -> BatchCycle:
        """Have a model answer each task, and learn from what is accepted."""
        return await learner.run_batch_learning_cycle(
            [LearningTask(one.task_type, one.prompt, one.context) for one in request.tasks],
            max_new_tokens=request.max_new_tokens,
            producer=request.producer,
        )

    return routes
