"Where clips come from: the sprite world with its two pools, and folders of real videos with captions."
