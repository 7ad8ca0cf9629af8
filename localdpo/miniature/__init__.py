"The tiny text-to-video models that come with the package, and a reader that says what a clip shows."
