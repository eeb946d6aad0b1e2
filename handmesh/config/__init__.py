"""Every setting of a run as a typed, frozen model, filled from one YAML file and `key.path=value` overrides.

    train           a run that learns the hand mesh model: `TrainConfig`, whose sections have a module each:
        model           the network
        data            what it learns from: renders, FreiHAND, your own photographs
        scenes          what is rendered
        augmentation    how a sample is seen anew
        loss            what is compared, by which weights
        optimizer       learning rate, schedule, averages
    detector        a run that learns to find hands, and all of its own sections: `DetectorConfig`
    load            from a file or a shipped configuration's name: `load_config`

Defaults live here with their reasons; a YAML file holds only what differs. A key that does not exist, or a value of
the wrong type, is a ConfigError that names it.
"""
