-- How sharp the faces are, in bins of 0.02: contrast of the finest details over the face's contrast.
--
-- Columns:
--   sharpness           lower edge of the bin: median over a clip; below 0.05 a face is mush
--   num_kept            kept clips
--   num_rejected        rejected clips
--   num_rejected_only   of those, how many fail the rule "blurred" and no other
SELECT
    round(floor(sharpness * 50) / 50, 2) AS sharpness,
    count(*) FILTER (decision = 'keep') AS num_kept,
    count(*) FILTER (decision = 'reject') AS num_rejected,
    count(*) FILTER (failed_rules = ['blurred']) AS num_rejected_only
FROM clips
WHERE sharpness IS NOT NULL
GROUP BY ALL
ORDER BY 1
