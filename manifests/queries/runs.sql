-- Attempts at curating, the last first: when, on what, how far, how they ended.
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
    recipe_hash,
    last_error
FROM runs
ORDER BY started_at DESC, run_id
