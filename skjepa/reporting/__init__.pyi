from .report_file import report as report
from .report_file import report_of_table as report_of_table
