"""The modeller's side: a generator and a data set from an artifact, and how good they are.

    settings        SynthesisSettings, PRESETS, settings_for
    targets         class_targets, ClassTargets, estimated_counts
    objective       MeanEmbeddingObjective
    metric          WithinClassMetric
    generator       Generator, GeneratorConfiguration, build_generator, save_generator, load_generator
    variation       random changes of generated images, of learned sizes
    feature_function  FeatureFunction, InParts
    training        train_generator, GeneratorTraining, TrainingCallbacks, TrainedGenerator
    denoising       denoised_means
    compilation     torch.compile for the encoder
    parallel        TrainingProcesses: several processes, one generator
    batch_norm      batch norm over the images of all of them
    labelling       MeanDiscriminant, learn_discriminant
    refining        logistic regression without labelled images
    probe           draw_probe, with_probe, NoiseProbe
    prior           load_prior, begin_with
    public_images   open_public_images, choose_public_images
    checkpoint      save_checkpoint, load_checkpoint
    sampling        images_per_class, draw_images, write_image_folders, write_npz, class_folder_names
    output_folder   OutputFolder
    pictures        preview_images, write_preview, write_curve
    record, report  run_record, write_report
    request         SynthesisRequest
    synthesis       synthesise, help_to_train, SynthesisCallbacks, SynthesisResult
    command         main (dpmepf-synth)
    evaluation      evaluate, EvaluationSettings
    classifiers, distances  accuracy; FID, KID, precision and recall
    evaluation_command, evaluation_report  main (dpmepf-eval)

Import from the modules: this package itself loads nothing.
"""
