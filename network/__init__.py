"""What a network is made of and runs on.

Begin with `backbones.build_backbone`; `net.EmbeddingNet` puts a backbone and the `layers` together.
`color` makes the colour features, `device` decides device and arithmetic, `distributed` joins
several processes, `checkpoint` reads and writes files of weights, `garments` finds garments.
"""
