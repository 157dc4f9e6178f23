"""Any life: people, Fly and faults do what they like in any order. The rules hold; when all is quiet, it converges."""

from any_life import Course, possible
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule


class AnyLife(RuleBasedStateMachine):
    """The courses that hypothesis finds, and makes as short as they can be when one breaks a rule."""

    course: Course

    @initialize(data=st.data())
    def begins(self, data: st.DataObject) -> None:
        self.course = Course(lambda options: data.draw(st.sampled_from(options)))

    @rule(data=st.data())
    def goes_on(self, data: st.DataObject) -> None:
        self.course.choose = lambda options: data.draw(st.sampled_from(options))
        what = data.draw(st.sampled_from(possible(self.course)))
        self.course.happens(what)

    def teardown(self) -> None:
        if hasattr(self, "course"):
            self.course.converges()


AnyLife.TestCase.settings = settings(
    max_examples=200,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
TestAnyLife = AnyLife.TestCase
