-- Attempts at curating, the last first: when, how far, how they ended, and what changed: options, number of kept clips.
--
-- Columns:
--   run_id              names the attempt
--   started_at          UTC
--   status              running, succeeded, failed or killed; one that was killed says running until the next begins
--   took_s              until it ended, or was last heard of
--   num_units           pieces of work that it finished
--   num_failed          of those, with problems
--   num_frames          frames that they looked at
--   num_workers         processes that did them
--   host                where its driver ran
--   num_kept            clips that it has selected; NULL where it did not come to that
--   num_kept_change     how many more that are than in the attempt before that selected
--   decision_changes    clips newly rejected and kept, with the rules, and those that move to another split
--   recipe_changes      options in which its recipe differs from the one before; `recipe` in the table runs has it whole
--   recipe_hash         of the recipe
--   last_error          why it failed
SELECT
    run_id,
    started_at,
    status,
    round(epoch(ended_at::TIMESTAMP) - epoch(started_at::TIMESTAMP), 1) AS took_s,
    coalesce(list_sum(list_transform(stages, lambda s: s.num_done)), 0)::BIGINT AS num_units,
    coalesce(list_sum(list_transform(stages, lambda s: s.num_failed)), 0)::BIGINT AS num_failed,
    coalesce(list_sum(list_transform(stages, lambda s: s.num_frames)), 0)::BIGINT AS num_frames,
    num_workers,
    host,
    num_kept,
    num_kept - lag(num_kept IGNORE NULLS) OVER (ORDER BY started_at, run_id) AS num_kept_change,
    decision_changes,
    recipe_changes,
    recipe_hash,
    last_error
FROM runs
ORDER BY started_at DESC, run_id
