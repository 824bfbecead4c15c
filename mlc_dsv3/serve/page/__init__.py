"""The chat page: static files of this folder, served at `/` and `/page/…` with headers that let them load nothing else.

The page is a client of the API beside it (`/v1/models`, `/v1/chat/completions`, `/experts`). Its files need no API key.
"""

from mlc_dsv3.serve.page.files import HEADERS, PageFile, read_page_files, router

__all__ = ["HEADERS", "PageFile", "read_page_files", "router"]
