from .drift import DriftAlarm as DriftAlarm
from .drift import DriftMonitor as DriftMonitor
from .score_monitor import ScoreMonitor as ScoreMonitor
from .stream_values import normal_values as normal_values
from .stream_values import stream_values as stream_values
from .stream_values import term_p_values as term_p_values
from .window_tests import WindowTests as WindowTests
from .window_tests import window_tests as window_tests
