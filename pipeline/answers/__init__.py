"""Many questions answered into a folder that grows by chunks, by one process or by several."""
