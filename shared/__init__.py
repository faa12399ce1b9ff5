"""What both sides must compute identically: encoders, image preparation, the feature map; and the console.

    image_sources       open_images: from a path to images
    image_layout, file_sources, class_names             class folders, and who is in them
    array_sources, idx_files, npz_files                 arrays
    shard_sources, shards, tar_files, text_labels       tar files
    parquet_files, parquet_columns                      parquet files
    image_source_types  ImageSource
    image_errors        one type for each malformation
    image_loading       iterate_batches, load_all
    image_ranges, image_workers     the work of other processes
    image_decoding      decode_image, read_header
    image_preparation   prepare_image
    schema              ImageSchema, infer_schema
    feature_map         FeatureMap, describe_feature_map, build_feature_map, PRESETS
    feature_map_description  FeatureMapDescription
    encoders            load_encoder
    activations         what of an encoder features are made of
    whitening           the public whitening of activations
    precision, devices, allocator   arithmetic, device, memory
    processes           several processes under torchrun
    output_file         where a command may write
    torch_files         files of torch.save, read without running their code
    errors              DpmepfError, UsageError
    console             progress, messages, errors
    pretraining         the training of the built-in encoder
    pretraining_command main (dpmepf-pretrain)

Import from the modules: this package itself loads nothing.
"""

__version__ = "0.1.0"
