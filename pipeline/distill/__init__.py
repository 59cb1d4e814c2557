"""SFT data from the samples of a teacher, kept where the grader accepts them."""

from pipeline.distill.config import DistillConfig, SelectionConfig, is_address
from pipeline.distill.local_teacher import LocalTeacher
from pipeline.distill.openai_teacher import OpenAITeacher
from pipeline.distill.sample_store import SampleStore
from pipeline.distill.selection import Selection, select
from pipeline.distill.teacher import Teacher, TeacherSample

__all__ = [
    "DistillConfig",
    "LocalTeacher",
    "OpenAITeacher",
    "SampleStore",
    "Selection",
    "SelectionConfig",
    "Teacher",
    "TeacherSample",
    "is_address",
    "select",
]
