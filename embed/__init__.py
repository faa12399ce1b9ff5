"""The custodian's side: images in, one noisy release out.

    bounding        bound_records                      trusted core
    summing         ClassSums                          trusted core
    noise           add_discrete_gaussian_noise        trusted core
    release         release                            trusted core
    pipeline        embed_images, sum_images, plan, EmbedSettings
    distributed     joined, Processes: several processes, one release
    persons         whose image each image is, where the guarantee is for a person
    checkpoint      Checkpoint: exact sums of a run that is not finished
    checkpoint_place, checkpoint_lock   where they may be kept, by one run at a time
    fingerprint     run_fingerprint: whether two runs see the same images
    expectation     noise_to_signal, noise_per_feature, noise_per_count
    listing         what cannot be used of the data, for their owner
    request         ReleaseRequest
    run             make_release: from a request to an artifact in its file
    outcome         what is said of a release that was broken off
    display         what the command shows
    command         main (dpmepf-embed)

PROOF.md holds the argument for the trusted core. Import from the modules: this package itself loads nothing.
"""
