"""TinyWorld, the embedded data set: scenes, their pictures, captions and questions."""
