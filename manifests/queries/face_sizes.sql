-- How large the faces are in their sources, in bins of 40 pixels.
--
-- Columns:
--   from_px             lower edge of the bin: median height of the detector's box over a clip
--   num_kept            kept clips
--   num_rejected        rejected clips
--   upscale_median      of the kept clips: pixels of the crop per pixel of the source
SELECT
    (floor(face_height_median_px / 40) * 40)::INTEGER AS from_px,
    count(*) FILTER (decision = 'keep') AS num_kept,
    count(*) FILTER (decision = 'reject') AS num_rejected,
    round(median(upscale_factor) FILTER (decision = 'keep'), 3) AS upscale_median
FROM clips
WHERE face_height_median_px IS NOT NULL
GROUP BY ALL
ORDER BY from_px
