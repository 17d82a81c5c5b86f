-- What the faces do: frames of the kept clips by openness of eyes and lips, in bins of 0.1.
--
-- Parameters:
--   split               only clips of this split
-- Columns:
--   eye_openness        lower edge of the bin; mean of both eyes, height over width
--   lip_openness        lower edge of the bin; height over width
--   num_frames          frames in the bin
--   share               of all these frames, 0 to 1
WITH kept AS (SELECT clip_id FROM clips WHERE decision = 'keep' AND ($split IS NULL OR split = $split)),
bins AS (
    SELECT
        floor((eye_openness_right + eye_openness_left) * 5)::INTEGER AS eyes,
        floor(lip_openness * 10)::INTEGER AS lips,
        count(*) AS num_frames
    FROM frames SEMI JOIN kept USING (clip_id)
    WHERE eye_openness_right IS NOT NULL AND eye_openness_left IS NOT NULL AND lip_openness IS NOT NULL
    GROUP BY ALL
)
SELECT eyes / 10 AS eye_openness, lips / 10 AS lip_openness, num_frames,
    round(num_frames / sum(num_frames) OVER (), 6) AS share
FROM bins
ORDER BY eyes, lips
