"""Privacy bugs in the trusted core, one line of it changed at a time, and the tests that have to notice.

A mutant is a textual change: `old` must occur exactly once in `file`. `killers` are tests (or test files) relative to
`tests/`, of which at least one has to fail; `test_mutants.py` runs them against a copy of the core. To go on after a
change of the core, adapt `old`; to see one mutant only: `pytest tests/mutants -m slow -k "half of sigma"`.
"""

from __future__ import annotations

from dataclasses import dataclass

BOUNDING = "unit/test_bounding.py"
SUMMING = "unit/test_summing.py"
CHECKPOINT = "unit/test_checkpoint.py"
PIPELINE = "unit/test_pipeline.py"
NEIGHBOURS = "property/test_neighbouring_datasets.py"
PERSONS = "property/test_neighbouring_persons.py"
NOISE = "unit/test_noise.py"
SAMPLER = "statistical/test_noise_statistics.py"
RELEASE = "unit/test_release.py"
ACCOUNTING = "unit/test_accounting.py"
ACCOUNTING_PROPERTIES = "property/test_accounting_properties.py"
SIGMAS = "golden/test_sigma_values.py"
LEDGER = "unit/test_ledger.py"
AUDIT = "unit/test_audit.py"
MERGING = "unit/test_merging.py"
REGISTER = "unit/test_register.py"
FILE = "unit/test_artifact_file.py"
HOSTILE = "attacks/test_hostile_artifacts.py"
FORGERIES = "attacks/test_forgeries.py"
MERGE_COMMAND = "end_to_end/test_merge_command.py"
RELEASED_NOISE = "statistical/test_release_noise.py"


@dataclass(frozen=True)
class Mutant:
    """A bug: `old` becomes `new` in `file`; `why` says what that breaks."""

    why: str
    file: str
    old: str
    new: str
    killers: tuple[str, ...]


def _mutant(why: str, file: str, old: str, new: str, *killers: str) -> Mutant:
    return Mutant(why=why, file=file, old=old, new=new, killers=killers)


MUTANTS = [
    # A record's contribution
    _mutant(
        "NaN passes the screen, and its conversion to an integer is unbounded",
        "embed/bounding.py",
        "too_long = ~(squared_norms <= float(squared_bound))",
        "too_long = squared_norms > float(squared_bound)",
        f"{BOUNDING}::test_a_row_that_is_not_finite_contributes_nothing",
    ),
    _mutant(
        "shortening rounds up instead of down",
        "embed/bounding.py",
        "shortened = (np.abs(lattice) << lattice_exponent) // norm_rounded_up",
        "shortened = -(-(np.abs(lattice) << lattice_exponent) // norm_rounded_up)",
        f"{BOUNDING}::test_no_row_is_longer_than_one_and_a_long_row_keeps_its_direction_and_norm_one",
    ),
    _mutant(
        "the norm is rounded down before dividing by it",
        "embed/bounding.py",
        "norm_rounded_up = math.isqrt(squared_norm - 1) + 1\n    shortened = (np.abs(lattice) <<",
        "norm_rounded_up = math.isqrt(squared_norm)\n    shortened = (np.abs(lattice) <<",
        f"{BOUNDING}::test_long_rows_of_two_dimensions_are_shortened_too",
    ),
    _mutant(
        "the final integer check is gone",
        "embed/bounding.py",
        'if (np.einsum("ij,ij->i", bounded, bounded) > squared_bound).any():',
        "if False:",
        f"{BOUNDING}::test_the_final_integer_check_catches_a_screen_that_lets_long_rows_pass",
    ),
    _mutant(
        "negative features are kept although the sensitivity of replacing counts on their absence",
        "embed/bounding.py",
        "np.maximum(bounded, 0, out=bounded)",
        "pass",
        f"{BOUNDING}::test_non_negative_features_have_no_negative_coordinate_left",
        f"{NEIGHBOURS}::test_no_pair_of_worst_records_exceeds_the_stated_sensitivity",
    ),
    _mutant(
        "negative features are looked for in the first row only",
        "embed/bounding.py",
        "bounded.min() < 0:",
        "bounded[0].min() < 0:",
        f"{BOUNDING}::test_a_single_negative_coordinate_is_raised_wherever_it_is",
    ),
    _mutant(
        "negative features of one step are not worth raising",
        "embed/bounding.py",
        "bounded.min() < 0:",
        "bounded.min() < -1:",
        f"{BOUNDING}::test_a_single_negative_coordinate_is_raised_wherever_it_is",
    ),
    _mutant(
        "a lattice on which a squared norm overflows is taken",
        "embed/bounding.py",
        "> 1 << MAX_NORM_BITS:",
        "> 1 << 66:",
        f"{BOUNDING}::test_features_or_lattices_that_the_proof_does_not_cover_are_refused",
    ),
    # Sums
    _mutant(
        "the encoder's norm is trusted",
        "embed/summing.py",
        "bound_records(part, lattice_exponent=self.lattice_exponent, non_negative=self.non_negative)",
        "np.nan_to_num(part * 2.0**self.lattice_exponent).astype(np.int64)",
        f"{NEIGHBOURS}::test_no_pair_of_worst_records_exceeds_the_stated_sensitivity",
    ),
    _mutant(
        "labels behind a mask are not checked, and stand for every class",
        "embed/summing.py",
        "labels = np.asarray(labels)",
        "labels = labels",
        f"{SUMMING}::test_a_mask_hides_no_label_from_the_checks",
    ),
    _mutant(
        "records are not held to the signs that the ledger states",
        "embed/summing.py",
        "bound_records(part, lattice_exponent=self.lattice_exponent, non_negative=self.non_negative)",
        "bound_records(part, lattice_exponent=self.lattice_exponent, non_negative=False)",
        f"{NEIGHBOURS}::test_no_pair_of_worst_records_exceeds_the_stated_sensitivity",
    ),
    _mutant(
        "parts of a batch overlap: records count twice",
        "embed/summing.py",
        "part = features[start : start + step]",
        "part = features[max(start - 1, 0) : start + step]",
        f"{SUMMING}::test_rows_are_bounded_and_summed_a_few_at_a_time_to_the_same_integers",
    ),
    _mutant(
        "what a defect left half added can be released",
        "embed/summing.py",
        "for row, label, person in zip(self._bounded_rows(features)",
        "self._totals = totals\n        for row, label, person in zip(self._bounded_rows(features)",
        f"{SUMMING}::test_a_defect_that_is_found_when_some_rows_are_in_leaves_sums_that_are_not_released",
    ),
    _mutant(
        "features that cannot be bounded are found out when the sums are changing",
        "embed/summing.py",
        "check_lattice(features, self.lattice_exponent)\n",
        "pass\n",
        f"{SUMMING}::test_features_that_cannot_be_bounded_are_refused_before_anything_changes",
    ),
    _mutant(
        "a record is counted twice",
        "embed/summing.py",
        "target[-1] += self.count_weight",
        "target[-1] += 2 * self.count_weight",
        f"{NEIGHBOURS}::test_no_pair_of_worst_records_exceeds_the_stated_sensitivity",
    ),
    _mutant(
        "sums can be released again",
        "embed/summing.py",
        "self._finish_person(totals)\n        self._records = 0",
        "self._finish_person(totals)\n        self._totals = totals\n        self._records = 0",
        f"{SUMMING}::test_sums_are_handed_over_once",
        f"{RELEASE}::test_the_same_sums_are_released_once",
    ),
    _mutant(
        "sums that were handed over stay, and can be released there too",
        "embed/summing.py",
        "return self._part(totals, process=process)",
        "self._totals = totals\n        return self._part(totals, process=process)",
        f"{SUMMING}::test_sums_that_were_handed_over_are_no_longer_where_they_came_from",
    ),
    _mutant(
        "the sums of a process are merged twice",
        "embed/summing.py",
        "if part.process <= self._last_merged:",
        "if False:",
        f"{SUMMING}::test_the_sums_of_a_process_count_once",
    ),
    _mutant(
        "sums that hold those of another process are handed on, and those can come again",
        "embed/summing.py",
        "if process < 1 or self._last_merged:",
        "if process < 1:",
        f"{SUMMING}::test_the_process_that_releases_and_merged_sums_hand_nothing_over",
    ),
    _mutant(
        "the records of other processes are not counted: together they can leave 64 bits",
        "embed/summing.py",
        "self._reserve(part.images)",
        "self._reserve(0)",
        f"{SUMMING}::test_the_records_of_all_processes_together_are_limited_so",
    ),
    _mutant(
        "sums come with a number of images that cannot have them",
        "embed/summing.py",
        "not largest <= part.images << self.lattice_exponent:",
        "False:",
        f"{SUMMING}::test_sums_that_so_many_images_cannot_have_are_not_merged",
    ),
    _mutant(
        "sums with and without negative features are merged",
        "embed/summing.py",
        "(part.unit_of_privacy, part.non_negative) == (self.unit_of_privacy, self.non_negative)",
        "part.unit_of_privacy == self.unit_of_privacy",
        f"{SUMMING}::test_sums_of_another_shape_are_not_merged",
    ),
    _mutant(
        "more records than 64-bit sums hold are taken: the sums wrap around",
        "embed/summing.py",
        "if self._records + records > self.max_records:",
        "if False:",
        f"{SUMMING}::test_more_records_than_int64_can_hold_are_refused_before_anything_overflows",
    ),
    _mutant(
        "printing the accumulator shows the number of records",
        "embed/summing.py",
        'dimension={self.dimension})"  # no private',
        'dimension={self.dimension}, records={self._records})"  # no private',
        f"{SUMMING}::test_the_accumulator_shows_no_private_value_when_printed",
    ),
    _mutant(
        "a change that was broken off leaves sums that can be released",
        "embed/summing.py",
        "totals, self._totals = self._totals, None",
        "totals = self._totals",
        f"{SUMMING}::test_sums_that_a_change_left_half_done_are_not_released",
    ),
    _mutant(
        "negative totals of another process are merged where no feature is negative",
        "embed/summing.py",
        "if self.non_negative and int(part.totals.min()) < 0:",
        "if False:",
        f"{SUMMING}::test_a_part_that_was_damaged_on_its_way_is_refused",
    ),
    # Sums that are kept
    _mutant(
        "what was kept changes with the sums: images after it are in it, and come again",
        "embed/summing.py",
        "self._part(totals.copy(), process=0)",
        "self._part(totals, process=0)",
        f"{SUMMING}::test_sums_go_on_after_they_were_kept_and_what_was_kept_stays_as_it_was",
    ),
    _mutant(
        "sums that were kept are restored into sums that have images",
        "embed/summing.py",
        "if self._records or self._last_merged or part.process != 0:",
        "if self._last_merged or part.process != 0:",
        f"{SUMMING}::test_sums_that_were_kept_are_restored_once_and_before_anything_else",
    ),
    _mutant(
        "sums that hold those of another process are kept, and those can come again",
        "embed/summing.py",
        "if self._last_merged:",
        "if False:",
        f"{SUMMING}::test_merged_sums_are_not_kept_as_they_could_be_merged_again",
    ),
    _mutant(
        "a person is kept without being clipped",
        "embed/summing.py",
        "self._finish_person(totals)\n        part = self._part(",
        "part = self._part(",
        f"{SUMMING}::test_sums_that_were_kept_and_gone_on_from_are_those_of_an_uninterrupted_run",
    ),
    _mutant(
        "the sums of other images are gone on from",
        "embed/checkpoint.py",
        'stored["fingerprint"].tobytes() != self._fingerprint',
        "False",
        f"{CHECKPOINT}::test_the_sums_of_another_run_are_refused_and_left_alone",
        f"{PIPELINE}::test_a_run_goes_on_with_the_same_images_only",
    ),
    _mutant(
        "images are whitened by one product, whose order of additions others in the batch may change",
        "embed/pipeline.py",
        "exact_float32(), each_image_alone():",
        "exact_float32():",
        f"{PIPELINE}::test_features_are_exact_float32_and_each_image_is_whitened_alone",
    ),
    _mutant(
        "on a GPU, features may be by algorithms that are chosen by trying, and of TF32",
        "embed/pipeline.py",
        "exact_float32(), each_image_alone():",
        "each_image_alone():",
        f"{PIPELINE}::test_features_are_exact_float32_and_each_image_is_whitened_alone",
    ),
    _mutant(
        "images that changed places are gone on from, and one is summed twice",
        "embed/pipeline.py",
        "fingerprint + state_of_files(source)",
        "fingerprint",
        f"{PIPELINE}::test_a_run_goes_on_with_the_same_images_only",
    ),
    _mutant(
        "the output is taken for sums that are kept, and deleted",
        "embed/checkpoint_place.py",
        "if any(other.is_relative_to(path) for other in real):",
        "if file in taken:",
        f"{CHECKPOINT}::test_a_file_that_is_something_else_is_refused_also_under_the_name_that_a_process_gives_it",
    ),
    _mutant(
        "damaged sums are gone on from",
        "embed/checkpoint.py",
        'stored["digest"].tobytes() != _digest(header, stored["fingerprint"], totals)',
        "False",
        f"{CHECKPOINT}::test_every_flipped_bit_and_every_missing_end_is_noticed",
    ),
    _mutant(
        "sums that another may have written are gone on from",
        "embed/checkpoint.py",
        "if found.st_uid != os.geteuid() or found.st_mode & _OTHERS:",
        "if False:",
        f"{CHECKPOINT}::test_a_file_that_others_may_touch_is_not_trusted",
    ),
    _mutant(
        "others may read the sums",
        "embed/checkpoint.py",
        "force=True, mode=_OWNER_ONLY",
        "force=True, mode=0o644",
        f"{CHECKPOINT}::test_the_file_is_for_its_owner_only_also_where_it_replaces_another",
    ),
    _mutant(
        "images are said to be done before they are summed",
        "embed/pipeline.py",
        "done=done + int(places[complete - 1]) + 1",
        "done=done + int(places[-1]) + 1",
        f"{PIPELINE}::test_a_run_that_goes_on_sums_every_image_once",
    ),
    _mutant(
        "images that were summed come again",
        "embed/pipeline.py",
        "source.rearranged(np.arange(done, len(source))), owners[done:]",
        "source, owners",
        f"{PIPELINE}::test_a_run_that_goes_on_sums_every_image_once",
    ),
    _mutant(
        "a person's images are kept in two parts, and clipped in each",
        "embed/pipeline.py",
        "ends = np.flatnonzero((following == places) | (owners[following] != owners[places]))",
        "ends = np.arange(len(places))",
        f"{PIPELINE}::test_a_run_that_goes_on_sums_every_image_once",
    ),
    _mutant(
        "places that the sums cannot have are gone on from, and images come again",
        "embed/checkpoint.py",
        "if not 0 <= images <= done <= places:",
        "if False:",
        f"{CHECKPOINT}::test_places_that_the_run_does_not_have_or_that_hold_fewer_images_are_refused",
    ),
    _mutant(
        "sums that leave images out are gone on from by a run that does not",
        "embed/checkpoint.py",
        "if images < done and not skipping:",
        "if False:",
        f"{CHECKPOINT}::test_a_run_that_leaves_nothing_out_does_not_go_on_from_sums_that_do",
        f"{PIPELINE}::test_sums_without_an_image_that_cannot_be_decoded_are_gone_on_from_only_by_a_run_that_skips",
    ),
    _mutant(
        "an archive that was replaced while it was open is gone on from, and an image is summed twice",
        "embed/fingerprint.py",
        "digest.update(source.members.directory())",
        "pass",
        f"{PIPELINE}::test_an_archive_that_is_replaced_while_it_is_open_is_another_run",
        f"{PIPELINE}::test_a_tar_whose_images_lie_elsewhere_is_another_run",
    ),
    _mutant(
        "two runs keep their sums in one file",
        "embed/checkpoint_lock.py",
        "fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        f"{CHECKPOINT}::test_a_second_run_is_refused_until_the_first_ends",
    ),
    _mutant(
        "a lock on a file that was removed is taken for one",
        "embed/checkpoint_lock.py",
        "            if _is_at(file, descriptor):\n                return descriptor",
        "            if True:\n                return descriptor",
        f"{CHECKPOINT}::test_the_lock_of_a_run_that_ends_while_the_next_begins_is_not_had_by_two",
    ),
    _mutant(
        "the lock of a killed run remains with a process that it started",
        "embed/checkpoint_lock.py",
        "os.register_at_fork(after_in_child=_leave_all_to_parent)",
        "",
        f"{CHECKPOINT}::test_the_lock_of_a_killed_run_does_not_remain_even_if_its_workers_do",
    ),
    # Persons
    _mutant(
        "a person's images are clipped to the truncated norm",
        "embed/bounding.py",
        "norm_of_all = math.isqrt(squared_norm - 1) + 1",
        "norm_of_all = math.isqrt(squared_norm)",
        f"{PERSONS}::test_clipping_keeps_the_direction_and_what_is_within_the_bound",
    ),
    _mutant(
        "a person's squared norm wraps around in int64",
        "embed/bounding.py",
        "wide = row if row.size * _largest(row) ** 2 <= LARGEST_INT64 else row.astype(object)",
        "wide = row",
        f"{PERSONS}::test_integers_that_leave_int64_when_squared_are_clipped_exactly",
    ),
    _mutant(
        "the final check of a person's contribution is gone",
        "embed/bounding.py",
        "if _squared_norm(clipped) > squared_bound:",
        "if False:",
        f"{PERSONS}::test_the_final_check_refuses_a_result_that_is_too_long",
    ),
    _mutant(
        "a person's images are not clipped",
        "embed/summing.py",
        "clipped = clip_contribution(np.stack(list(own.values())), squared_bound=squared_bound)",
        "clipped = np.stack(list(own.values()))",
        f"{PERSONS}::test_removing_or_replacing_a_person_with_many_images_keeps_to_it",
    ),
    _mutant(
        "the last person is forgotten: whether they are there decides about the one before",
        "embed/summing.py",
        "        self._finish_person(totals)\n        self._records = 0",
        "        self._records = 0",
        f"{PERSONS}::test_the_bound_is_reached_so_that_no_noise_is_wasted",
    ),
    _mutant(
        "a person who comes again is clipped apart, and counts twice",
        "embed/summing.py",
        "if any(later < earlier for",
        "if any(False for",
        f"{SUMMING}::test_a_person_who_comes_again_is_refused_within_a_batch_and_after_it",
    ),
    _mutant(
        "sums by image are merged into sums by person, and nobody is clipped",
        "embed/summing.py",
        "(part.unit_of_privacy, part.non_negative) == (self.unit_of_privacy, self.non_negative)",
        "part.non_negative == self.non_negative",
        f"{SUMMING}::test_sums_of_another_shape_are_not_merged",
    ),
    _mutant(
        "a person is in the sums of two processes, and counts twice",
        "embed/summing.py",
        "and part.persons[0] <= self._person:",
        "and False:",
        f"{SUMMING}::test_a_person_who_could_be_in_the_sums_of_two_processes_is_refused",
    ),
    _mutant(
        "who was in the sums of another process is forgotten",
        "embed/summing.py",
        "self._person = part.persons[1]",
        "pass",
        f"{SUMMING}::test_a_person_in_merged_sums_does_not_come_again",
    ),
    _mutant(
        "the last person of merged sums comes again, is clipped apart, and counts twice",
        "embed/summing.py",
        "[self._person if self._own else self._person + 1]",
        "[self._person]",
        f"{SUMMING}::test_a_person_in_merged_sums_does_not_come_again",
    ),
    _mutant(
        "sums by person are merged without saying whose they are",
        "embed/summing.py",
        "if (part.persons is not None) != (part.unit_of_privacy == ONE_PERSON and part.images > 0):",
        "if False:",
        f"{SUMMING}::test_sums_by_person_without_their_persons_are_refused",
    ),
    _mutant(
        "the ledger says one person where images were summed",
        "embed/release.py",
        "unit_of_privacy=sums.unit_of_privacy,",
        'unit_of_privacy="one person",',
        f"{RELEASE}::test_the_ledger_names_the_unit_that_the_sums_were_bounded_for",
    ),
    _mutant(
        "a release for persons is charged to a budget for images",
        "artifacts/accounts.py",
        "    if ledger.unit_of_privacy != account.budget.unit_of_privacy:\n        raise RegisterBudgetError",
        "    if False:\n        raise RegisterBudgetError",
        "unit/test_embed_command.py::test_a_budget_for_images_takes_no_release_for_persons_nor_the_other_way_round",
    ),
    # The release
    _mutant(
        "noise of half of sigma",
        "embed/release.py",
        "add_discrete_gaussian_noise(exact, sigma=ledger.sigma, ",
        "add_discrete_gaussian_noise(exact, sigma=ledger.sigma / 2, ",
        f"{RELEASE}::test_the_noise_in_the_artifact_has_the_sigma_of_the_ledger",
    ),
    _mutant(
        "no noise at all",
        "embed/release.py",
        "stored = coarsen(noisy, ",
        "stored = coarsen(exact, ",
        f"{RELEASE}::test_two_releases_of_the_same_data_differ_in_practically_every_value_whatever_is_seeded",
    ),
    _mutant(
        "counts without noise",
        "embed/release.py",
        "    stored = coarsen(noisy, ",
        "    noisy[-sums.class_count :] = exact[-sums.class_count :]\n    stored = coarsen(noisy, ",
        f"{RELEASED_NOISE}::test_counts_get_the_same_noise_as_features",
    ),
    _mutant(
        "the release is not charged",
        "embed/release.py",
        "        charge(ledger)\n",
        "        pass\n",
        f"{RELEASE}::test_a_release_is_charged_last_of_all_before_the_noise",
    ),
    _mutant(
        "the release is charged after its noise is drawn",
        "embed/release.py",
        "        charge(ledger)\n"
        "    noisy = add_discrete_gaussian_noise(exact, sigma=ledger.sigma, progress=progress)\n",
        "        pass\n"
        "    noisy = add_discrete_gaussian_noise(exact, sigma=ledger.sigma, progress=progress)\n"
        "    if charge is not None:\n"
        "        charge(ledger)\n",
        f"{RELEASE}::test_a_release_is_charged_last_of_all_before_the_noise",
        f"{RELEASE}::test_a_release_that_is_not_charged_draws_no_noise",
    ),
    _mutant(
        "non-negative features are claimed that nothing enforced",
        "embed/release.py",
        "non_negative_features=sums.non_negative,",
        "non_negative_features=True,",
        f"{RELEASE}::test_the_artifact_states_parameters_that_meet_the_claim",
    ),
    _mutant(
        "the pipeline does not pass the charge on",
        "embed/pipeline.py",
        "        charge=charge,\n",
        "        charge=None,\n",
        "unit/test_embed_command.py::test_a_release_is_charged_and_one_over_budget_is_refused_before_an_image_is_read",
    ),
    # Noise
    _mutant(
        "the sampler is given half of sigma",
        "embed/noise.py",
        "make_gaussian(*space, scale=sigma)",
        "make_gaussian(*space, scale=sigma / 2)",
        f"{SAMPLER}::test_sigma_is_the_scale_asked_for",
    ),
    _mutant(
        "a rounded continuous Gaussian",
        "embed/noise.py",
        "noisy = np.asarray(mechanism(values), dtype=np.int64)",
        "noisy = values + np.rint(np.random.default_rng().normal(0, sigma, len(values))).astype(np.int64)",
        f"{SAMPLER}::test_every_integer_is_as_frequent_as_the_discrete_gaussian_says",
    ),
    _mutant(
        "noise from a seed",
        "embed/noise.py",
        "noisy = np.asarray(mechanism(values), dtype=np.int64)",
        "noisy = values + np.rint(np.random.default_rng(0).normal(0, sigma, len(values))).astype(np.int64)",
        f"{NOISE}::test_two_draws_differ_in_practically_every_value_whatever_is_seeded",
    ),
    _mutant(
        "a sigma that the accounting does not cover is taken",
        "embed/noise.py",
        "if not (math.isfinite(sigma) and 1.0 <= sigma <= LARGEST_SIGMA):",
        "if False:",
        f"{NOISE}::test_a_scale_that_the_accounting_does_not_cover_is_refused",
    ),
    _mutant(
        "where noise cannot be drawn, values go on without it",
        "embed/noise.py",
        "        # `from None`: the library's own text could quote a value.\n",
        "        return values\n",
        f"{NOISE}::test_missing_entropy_is_an_error_without_the_librarys_text",
    ),
    _mutant(
        "an error quotes the library's text, and so perhaps a value",
        "embed/noise.py",
        "({type(error).__name__})",
        "({error})",
        f"{NOISE}::test_missing_entropy_is_an_error_without_the_librarys_text",
    ),
    # Sensitivity
    _mutant(
        "replacing one record of any signs is taken to move the sum by √2 Λ only",
        "artifacts/sensitivity.py",
        "replaced = 2 if non_negative_features else 4",
        "replaced = 2",
        f"{NEIGHBOURS}::test_no_pair_of_worst_records_exceeds_the_stated_sensitivity",
        f"{LEDGER}::test_the_sensitivity_follows_the_relation_and_the_signs",
    ),
    _mutant(
        "replacing is taken to cost no more than adding",
        "artifacts/sensitivity.py",
        "multiplier = 1 if relation is NeighbouringRelation.ADD_OR_REMOVE_ONE else replaced",
        "multiplier = 1",
        f"{NEIGHBOURS}::test_no_pair_of_worst_records_exceeds_the_stated_sensitivity",
    ),
    _mutant(
        "the count is left out of the sensitivity",
        "artifacts/sensitivity.py",
        "return 4**exponent + count_weight**2",
        "return 4**exponent",
        f"{NEIGHBOURS}::test_no_pair_of_worst_records_exceeds_the_stated_sensitivity",
    ),
    _mutant(
        "the root of the squared sensitivity is rounded to nearest",
        "artifacts/sensitivity.py",
        "while Fraction(root) ** 2 < squared:",
        "while False:",
        f"{ACCOUNTING_PROPERTIES}::test_the_sensitivity_bound_is_never_below_the_root",
    ),
    _mutant(
        "a lattice so fine that a sum of squares leaves 64 bits",
        "artifacts/sensitivity.py",
        "(62 - (dimension - 1).bit_length()) // 2",
        "(64 - (dimension - 1).bit_length()) // 2",
        f"{ACCOUNTING_PROPERTIES}::test_a_sum_of_squares_of_bounded_coordinates_always_fits_int64",
    ),
    # Accounting
    _mutant(
        "sigma is not stepped outward to where the recomputed delta holds",
        "artifacts/accounting.py",
        "return _smallest_float(satisfies, guess, least=1.0)",
        "return max(guess, 1.0)",
        f"{ACCOUNTING_PROPERTIES}::"
        "test_the_discrete_release_meets_its_target_and_its_epsilon_is_recomputed_within_the_claim",
    ),
    _mutant(
        "the search ends on the last float at which the target is missed",
        "artifacts/accounting.py",
        "    return good\n",
        "    return bad\n",
        f"{ACCOUNTING}::test_sigma_is_the_smallest_float_that_meets_the_target_even_at_the_corners",
    ),
    _mutant(
        "a reported delta is rounded to nearest",
        "artifacts/accounting.py",
        "if nearest < value:",
        "if False:",
        f"{ACCOUNTING_PROPERTIES}::test_a_reported_delta_is_never_below_the_true_one",
    ),
    _mutant(
        "releases compose to the largest of them",
        "artifacts/accounting.py",
        "_MP.sqrt(_MP.fsum(squares))",
        "_MP.sqrt(max(squares))",
        f"{REGISTER}::test_the_squares_of_unequal_releases_add_up",
    ),
    _mutant(
        "the lattice costs nothing",
        "artifacts/accounting.py",
        "return _MP.exp(below) * _delta(epsilon - below - above, mu) + tail",
        "return continuous",
        f"{ACCOUNTING}::test_the_continuous_delta_alone_would_not_always_cover_the_discrete_mechanism",
    ),
    _mutant(
        "the lattice is paid for one coordinate only",
        "artifacts/accounting.py",
        "below += coordinates / (24 * sigma**2)",
        "below += 1 / (24 * sigma**2)",
        f"{ACCOUNTING}::test_the_lattice_is_paid_for_on_every_coordinate",
    ),
    _mutant(
        "the noise multiplier told to other accountants is rounded to nearest",
        "artifacts/accounting.py",
        "return math.nextafter(ratio, 0.0) if _MP.mpf(ratio) * sensitivity > sigma else ratio",
        "return ratio",
        f"{ACCOUNTING}::test_the_noise_multiplier_is_rounded_down",
    ),
    _mutant(
        "sigma below one lattice step is accounted for as if it were proven",
        "artifacts/accounting.py",
        "if not math.isfinite(sigma) or sigma < 1:",
        "if False:",
        f"{ACCOUNTING}::test_sigma_below_one_lattice_step_is_refused_and_never_calibrated",
    ),
    _mutant(
        "another module's precision weakens the accounting",
        "artifacts/accounting.py",
        "_MP = mpmath.mp.clone()",
        "_MP = mpmath.mp",
        f"{ACCOUNTING}::test_another_modules_working_precision_does_not_weaken_the_accounting",
    ),
    _mutant(
        "the formula's shift has the wrong size",
        "artifacts/accounting.py",
        "        a = mu / 2 - epsilon / mu\n        return _normal_cdf(a)",
        "        a = mu / 4 - epsilon / mu\n        return _normal_cdf(a)",
        f"{ACCOUNTING}::test_delta_equals_the_integral_of_the_privacy_loss",
    ),
    # Ledger
    _mutant(
        "sigma is calibrated for half of the sensitivity",
        "artifacts/ledger.py",
        "epsilon, delta, sensitivity=bound, coordinates=",
        "epsilon, delta, sensitivity=bound / 2, coordinates=",
        f"{SIGMAS}::test_a_planned_default_release_has_these_parameters_exactly",
    ),
    _mutant(
        "sigma is calibrated for one coordinate",
        "artifacts/ledger.py",
        "coordinates=class_count * (feature_dimension + 1)",
        "coordinates=1",
        f"{RELEASE}::test_the_artifact_states_parameters_that_meet_the_claim",
    ),
    _mutant(
        "an unknown field, such as the number of records, is read over",
        "artifacts/ledger.py",
        "for name in sorted(set(fields) - expected):",
        "for name in ():",
        f"{LEDGER}::test_an_unknown_or_malformed_entry_is_refused_by_name",
    ),
    # Claims
    _mutant(
        "an epsilon below the recomputed one is accepted, and one above refused",
        "artifacts/claims.py",
        "holds = epsilon <= ledger.epsilon",
        "holds = epsilon >= ledger.epsilon",
        f"{AUDIT}::test_a_forged_claim_is_found_by_name",
    ),
    _mutant(
        "epsilon is recomputed from the sensitivity that the ledger claims",
        "artifacts/claims.py",
        "delta, sensitivity=implied_sensitivity(release, relation), sigma",
        "delta, sensitivity=release.sensitivity, sigma",
        f"{AUDIT}::test_a_forged_claim_is_found_by_name",
    ),
    _mutant(
        "whole numbers of the ledger are not compared",
        "artifacts/claims.py",
        "holds = claimed == recomputed",
        "holds = True",
        f"{AUDIT}::test_a_forged_claim_is_found_by_name",
    ),
    _mutant(
        "any lattice is accepted",
        "artifacts/claims.py",
        "if claimed == expected:",
        "if True:",
        f"{AUDIT}::test_a_forged_claim_is_found_by_name",
    ),
    # Merged releases
    _mutant(
        "the merged claim is the smallest epsilon",
        "artifacts/merged_ledger.py",
        '"epsilon": max(',
        '"epsilon": min(',
        f"{MERGING}::test_the_claim_is_the_largest_epsilon_and_the_largest_delta",
    ),
    _mutant(
        "the merged claim is the smallest delta",
        "artifacts/merged_ledger.py",
        '"delta": max(',
        '"delta": min(',
        f"{MERGING}::test_the_claim_is_the_largest_epsilon_and_the_largest_delta",
    ),
    _mutant(
        "the merged claim is shown for the release with the most noise",
        "artifacts/claims.py",
        "return min(ledger.releases",
        "return max(ledger.releases",
        f"{MERGING}::test_the_claim_is_the_largest_epsilon_and_the_largest_delta",
    ),
    _mutant(
        "only the first of merged releases is audited",
        "artifacts/claims.py",
        "in enumerate(ledger.releases, 1)",
        "in enumerate(ledger.releases[:1], 1)",
        f"{MERGING}::test_a_part_that_its_audit_would_reject_makes_no_merged_file",
    ),
    _mutant(
        "a release that was left out of a merged ledger is not missed",
        "artifacts/claims.py",
        "ledger.noise_sigma, sum_sigma(ledger.releases), meaning",
        "ledger.noise_sigma, ledger.noise_sigma, meaning",
        FORGERIES,
    ),
    _mutant(
        "a merged ledger may hold a release twice",
        "artifacts/merged_ledger.py",
        "if release.release_id in numbers:",
        "if False:",
        FORGERIES,
    ),
    _mutant(
        "a merged ledger may hold releases of different relations",
        "artifacts/merged_ledger.py",
        "            if difference is not None:",
        "            if False:",
        f"{MERGING}::test_a_ledger_of_releases_that_do_not_belong_together_is_refused",
    ),
    _mutant(
        "persons and images pass for the same unit of privacy",
        "artifacts/merged_ledger.py",
        '    "unit_of_privacy": "unit of privacy",\n',
        "",
        f"{MERGING}::test_artifacts_that_differ_are_refused_in_a_sentence_of_their_own",
    ),
    _mutant(
        "a merged ledger may hold one release, or none",
        "artifacts/merged_ledger.py",
        "if not 2 <= releases <= LARGEST_RELEASES:",
        "if releases > LARGEST_RELEASES:",
        f"{MERGING}::test_a_malformed_merged_ledger_is_refused_by_name",
    ),
    _mutant(
        "the same artifact twice is added up",
        "artifacts/merging.py",
        "if release.release_id in holders:",
        "if False:",
        f"{MERGING}::test_one_release_in_two_parts_is_refused_also_inside_merged_ones",
    ),
    _mutant(
        "artifacts that differ are added up",
        "artifacts/merging.py",
        "    if difference is not None:",
        "    if False:",
        f"{MERGING}::test_artifacts_that_differ_are_refused_in_a_sentence_of_their_own",
    ),
    _mutant(
        "stored steps of different size are added up as if they were one",
        "artifacts/merging.py",
        "total = values << shift",
        "total = values.copy()",
        f"{MERGING}::test_the_merged_integers_are_the_sum_of_all_parts_without_any_rounding",
    ),
    _mutant(
        "a sum beyond 64 bits wraps",
        "artifacts/merging.py",
        ">= 2**63:",
        ">= 2**65:",
        f"{MERGING}::test_a_sum_beyond_64_bits_is_refused_and_never_wraps",
    ),
    _mutant(
        "the noise of a sum is told to be that of its first release",
        "artifacts/artifact.py",
        "for one in releases))",
        "for one in releases[:1]))",
        f"{RELEASED_NOISE}::test_a_merged_artifact_has_the_noise_of_all_its_releases_together",
    ),
    _mutant(
        "artifacts that fail their audit are merged, and learned from",
        "artifacts/hdf5_file.py",
        '    if failed:\n        raise InconsistentArtifactError(\n            f"{path} claims',
        '    if False:\n        raise InconsistentArtifactError(\n            f"{path} claims',
        FORGERIES,
        MERGE_COMMAND,
    ),
    # Register
    _mutant(
        "the budget is not checked",
        "artifacts/accounts.py",
        "if account.holds(ledger):",
        "if True:",
        f"{REGISTER}::test_a_budget_holds_exactly_one_release_of_its_own_size",
    ),
    _mutant(
        "earlier releases are forgotten",
        "artifacts/accounts.py",
        "[release.ledger for release in self.releases] + list(further)",
        "list(further)",
        f"{REGISTER}::test_over_budget_says_what_would_fit_and_that_fits",
    ),
    _mutant(
        "the entry is not committed",
        "artifacts/register.py",
        'connection.execute("COMMIT")',
        'connection.execute("ROLLBACK")',
        f"{REGISTER}::test_a_budget_holds_exactly_one_release_of_its_own_size",
    ),
    _mutant(
        "nobody looks whether the entry was kept",
        "artifacts/register.py",
        "if not self.read().holds_hash(entries[-1].hash):",
        "if False:",
        f"{REGISTER}::test_a_register_that_does_not_keep_the_entry_stops_the_release",
    ),
    _mutant(
        "a release counts with its own relation instead of the budget's",
        "artifacts/accounts.py",
        "sensitivity=implied_sensitivity(ledger, self.budget.relation),",
        "sensitivity=implied_sensitivity(ledger, ledger.relation),",
        f"{REGISTER}::test_a_release_under_the_other_relation_counts_with_its_sensitivity_under_the_budgets",
    ),
    _mutant(
        "entries are not linked to the one before",
        "artifacts/register.py",
        'isinstance(content, dict) and content.get("previous") == _last_hash(entries)',
        "isinstance(content, dict)",
        f"{REGISTER}::test_an_edited_entry_with_its_own_hash_mended_breaks_the_next",
    ),
    _mutant(
        "entries are not compared with their hash",
        "artifacts/register.py",
        " or digest != _hash(text):",
        ":",
        f"{REGISTER}::test_an_entry_that_was_edited_or_removed_shows",
    ),
    _mutant(
        "a trigger that swallows entries is not noticed",
        "artifacts/register.py",
        "if found != sorted(_OBJECTS):",
        "if False:",
        f"{REGISTER}::test_a_schema_that_could_swallow_entries_is_refused",
    ),
    _mutant(
        "a ledger that contradicts itself is charged with what it claims",
        "artifacts/accounts.py",
        '    if failed:\n        raise RegisterError(f"the ledger contradicts',
        '    if False:\n        raise RegisterError(f"the ledger contradicts',
        f"{REGISTER}::test_a_ledger_that_contradicts_itself_is_not_charged",
    ),
    _mutant(
        "a name that looks like another opens a second budget",
        "artifacts/accounts.py",
        "    if similar is not None:",
        "    if False:",
        f"{REGISTER}::test_a_name_that_is_almost_anothers_gets_no_budget_of_its_own",
    ),
    # The file
    _mutant(
        "an artifact that its audit would reject is written",
        "artifacts/hdf5_file.py",
        '    if failed:\n        raise InconsistentArtifactError(f"the artifact was not written',
        '    if False:\n        raise InconsistentArtifactError(f"the artifact was not written',
        f"{FILE}::test_an_artifact_that_its_audit_would_reject_is_not_written",
    ),
    _mutant(
        "members that no artifact has are read over",
        "artifacts/hdf5_file.py",
        "        inspection.check_members(file)\n",
        "",
        HOSTILE,
    ),
    _mutant(
        "bytes hidden after a row's end are read over",
        "artifacts/hdf5_file.py",
        " or inflater.unused_data:",
        ":",
        HOSTILE,
    ),
    _mutant(
        "bytes hidden after the end of the file are read over",
        "artifacts/hdf5_inspection.py",
        "    if end != size:",
        "    if end > size:",
        HOSTILE,
    ),
    _mutant(
        "attributes are read over",
        "artifacts/hdf5_inspection.py",
        "    if h5a.get_num_attrs(identifier):",
        "    if False:",
        HOSTILE,
    ),
    _mutant(
        "values may lie in another file",
        "artifacts/hdf5_inspection.py",
        "    if plist.get_external_count():",
        "    if False:",
        HOSTILE,
    ),
    _mutant(
        "a row may store more than its values",
        "artifacts/hdf5_inspection.py",
        "    if stored > largest_stored_size(rows, columns):",
        "    if False:",
        HOSTILE,
    ),
    _mutant(
        "stored numbers that no noisy sum can be are taken",
        "artifacts/artifact.py",
        "if int(array.max()) > largest or int(array.min()) < -largest:",
        "if False:",
        f"{FILE}::test_values_that_no_64_bit_sum_can_be_are_refused",
    ),
    _mutant(
        "a key may appear twice: readers disagree on what the ledger claims",
        "artifacts/strict_json.py",
        "if key in found:",
        "if False:",
        f"{LEDGER}::test_json_that_artifacts_never_hold_is_refused",
    ),
    _mutant(
        "the file is named before it is on the disk",
        "artifacts/atomic_file.py",
        "    os.fsync(file.fileno())\n",
        "",
        f"{FILE}::test_a_full_disk_leaves_nothing_and_touches_nothing",
    ),
    _mutant(
        "a file that cannot be completed stays behind",
        "artifacts/atomic_file.py",
        "temporary.unlink(missing_ok=True)",
        "pass",
        f"{FILE}::test_a_full_disk_leaves_nothing_and_touches_nothing",
    ),
    _mutant(
        "an unfinished file has a name, so that a killed process leaves it behind",
        "artifacts/atomic_file.py",
        'if not hasattr(os, "O_TMPFILE"):',
        "if True:",
        f"{FILE}::test_nothing_has_a_name_before_it_is_complete",
    ),
    _mutant(
        "a file that appeared meanwhile is replaced unasked",
        "artifacts/atomic_file.py",
        "            if not force:\n                raise\n",
        "",
        f"{FILE}::test_a_file_that_appears_meanwhile_is_not_overwritten",
    ),
]
