"""Work over many images: captions, answers, features, and search among them."""
