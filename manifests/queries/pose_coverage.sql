-- Where the heads look: frames of the kept clips by yaw and pitch, in bins of 15 degrees.
--
-- Parameters:
--   split               only clips of this split
-- Columns:
--   yaw_deg             lower edge of the bin; + = the face turns to the image's right
--   pitch_deg           lower edge of the bin; + = up
--   num_frames          frames in the bin
--   share               of all these frames, 0 to 1
WITH kept AS (SELECT clip_id FROM clips WHERE decision = 'keep' AND ($split IS NULL OR split = $split)),
bins AS (
    SELECT (floor(yaw_deg / 15) * 15)::INTEGER AS yaw_deg, (floor(pitch_deg / 15) * 15)::INTEGER AS pitch_deg,
        count(*) AS num_frames
    FROM frames SEMI JOIN kept USING (clip_id)
    WHERE yaw_deg IS NOT NULL AND pitch_deg IS NOT NULL
    GROUP BY ALL
)
SELECT yaw_deg, pitch_deg, num_frames, round(num_frames / sum(num_frames) OVER (), 6) AS share
FROM bins
ORDER BY yaw_deg, pitch_deg
