-- Why clips were rejected: every rule with what it caught. A clip that fails several rules counts for each.
--
-- Columns:
--   rule                name of the rule (python -m curation rules explains them)
--   num_clips           clips that fail it
--   hours               their length
--   share               of all clips, 0 to 1
--   num_only            clips that fail no other rule: without this rule they would be kept, or a copy of them
--   hours_only          their length
WITH failed AS (
    SELECT unnest(failed_rules) AS rule, len(failed_rules) = 1 AS is_only, duration_s
    FROM clips
    WHERE len(failed_rules) > 0
)
SELECT
    rule,
    count(*) AS num_clips,
    round(coalesce(sum(duration_s), 0) / 3600, 6) AS hours,
    round(count(*) / (SELECT count(*) FROM clips), 4) AS share,
    count(*) FILTER (is_only) AS num_only,
    round(coalesce(sum(duration_s) FILTER (is_only), 0) / 3600, 6) AS hours_only
FROM failed
GROUP BY rule
ORDER BY num_clips DESC, rule
