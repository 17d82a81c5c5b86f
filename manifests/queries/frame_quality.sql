-- Quantiles of what was measured on the frames of the kept clips: on every tenth frame, approximate (t-digest).
--
-- Parameters:
--   split               only clips of this split
-- Columns:
--   measure             a column of the view frames
--   p01                 1 % of the frames lie below
--   p10                 10 %
--   p50                 the median
--   p90                 90 %
--   p99                 99 %
WITH kept AS (SELECT clip_id FROM clips WHERE decision = 'keep' AND ($split IS NULL OR split = $split)),
quantiles AS (
    SELECT
        approx_quantile(sharpness, [0.01, 0.1, 0.5, 0.9, 0.99]) AS sharpness,
        approx_quantile(exposure, [0.01, 0.1, 0.5, 0.9, 0.99]) AS exposure,
        approx_quantile(presence, [0.01, 0.1, 0.5, 0.9, 0.99]) AS presence,
        approx_quantile(motion, [0.01, 0.1, 0.5, 0.9, 0.99]) AS motion
    FROM frames SEMI JOIN kept USING (clip_id)
    WHERE frame % 10 = 0
)
SELECT measure, q[1] AS p01, q[2] AS p10, q[3] AS p50, q[4] AS p90, q[5] AS p99
FROM (UNPIVOT quantiles ON COLUMNS(*) INTO NAME measure VALUE q)
ORDER BY measure
