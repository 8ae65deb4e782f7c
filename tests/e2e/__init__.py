"""The main job, end to end: an application under uvicorn, its gates, the controller, and real servers round them."""
