-- Every frame of one clip with its measurements.
--
-- Parameters:
--   clip                (required) the clip_id
-- Columns:
--   frame               index in the clip
--   time_s              in the source
--   yaw_deg             + = the face turns to the image's right
--   pitch_deg           + = up
--   roll_deg            + = clockwise
--   eye_openness        mean of both eyes
--   lip_openness        of the mouth
--   presence            probability that this is a face
--   sharpness           of the face
--   exposure            mean luma of the face, 0 to 1
--   motion              since the frame before, in distances between the eyes
--   is_repeat           the source had no new picture for this tick
SELECT
    frame,
    time_s,
    yaw_deg,
    pitch_deg,
    roll_deg,
    (eye_openness_right + eye_openness_left) / 2 AS eye_openness,
    lip_openness,
    presence,
    sharpness,
    exposure,
    motion,
    is_repeat
FROM frames
WHERE clip_id = $clip
ORDER BY frame
