from .folder import NotHereError as NotHereError
from .folder import NotPortableError as NotPortableError
from .folder import portable as portable
from .folder import read_folder as read_folder
from .folder import write_folder as write_folder
