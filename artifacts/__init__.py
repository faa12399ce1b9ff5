"""The HDF5 artifact, its ledger, the accounting behind it and the auditor's command.

    relation        NeighbouringRelation
    sensitivity     lattice_exponent, count_weight_lattice, record_norm_squared, sensitivity_squared,
                    sensitivity_upper_bound, coarsening_exponent
    accounting      gaussian_delta, gaussian_epsilon, calibrate_sigma; discrete_gaussian_delta,
                    discrete_gaussian_epsilon, calibrate_discrete_sigma; noise_multiplier_lower_bound
    accountants     the same release as others' accountants see it
    ledger          Ledger, plan_release, installed_versions
    merged_ledger   MergedLedger, merge_ledgers, read_ledger
    artifact        Artifact
    hdf5_file       read_artifact, read_verified_artifact, write_artifact, rehearse
    hdf5_headers    check_headers
    hdf5_inspection looking at a hostile file without reading its values
    strict_json     JSON of one spelling
    signature       Ed25519 signatures beside a file
    atomic_file     check_writable_target, write_atomically
    claims          check_claims
    merging         merge_artifacts
    merge_command   main (dpmepf-merge)
    accounts        Budget, RegisteredRelease, Account
    register        Register, Book, default_register
    audit           audit_artifact, AuditReport
    audit_command   main (dpmepf-audit)
    register_command  dpmepf-audit of a register
    tables          how these show numbers
    errors          one type for each malformation

Import from the modules: this package itself loads nothing.
"""
