//! Configurations of either library, and pixels.

use serde_json::json;

use super::*;

#[test]
fn the_spellings_of_a_size_are_understood() {
    let side = |json: Value| hugging_face(&json).map(|p| (p.resize, p.side));
    assert_eq!(side(json!({})).unwrap(), (Resize::Shortest(224), 224));
    assert_eq!(side(json!({ "size": 48, "crop_size": 40 })).unwrap(), (Resize::Shortest(48), 40));
    assert_eq!(
        side(
            json!({ "size": { "shortest_edge": 48 }, "crop_size": { "height": 48, "width": 48 } })
        )
        .unwrap(),
        (Resize::Shortest(48), 48)
    );
    assert_eq!(
        side(json!({ "size": { "height": 9, "width": 9 }, "do_center_crop": false })).unwrap(),
        (Resize::Exactly(9, 9), 9)
    );
    for wrong in [
        json!({ "size": { "longest_edge": 9 } }),
        json!({ "size": { "shortest_edge": 9, "longest_edge": 9 } }),
        json!({ "size": { "shortest_edge": 9, "height": 9, "width": 9 } }),
        json!({ "crop_size": { "shortest_edge": 9 } }),
    ] {
        assert!(side(wrong.clone()).is_err(), "{wrong}");
    }
    assert!(side(json!({ "crop_size": { "height": 8, "width": 9 } })).is_err());
    assert!(side(json!({ "size": 48, "do_center_crop": false })).is_err());
}

#[test]
fn unsupported_configurations_are_refused() {
    assert!(
        hugging_face(&json!({ "image_processor_type": "ViTImageProcessor" }))
            .unwrap_err()
            .contains("ViTImageProcessor")
    );
    assert!(hugging_face(&json!({ "resample": 9 })).is_err());
    for wrong in [
        json!({ "image_mean": [0.5] }),
        json!({ "image_std": [0.5, "x", 0.5, 0.5] }),
        json!({ "do_resize": "yes" }),
        json!({ "rescale_factor": "1" }),
    ] {
        assert!(hugging_face(&wrong).is_err(), "{wrong}");
    }
    for key in NOT_NULL {
        assert!(hugging_face(&json!({ key: null })).unwrap_err().contains(key));
    }
    for wrong in [
        json!({ "resize_mode": "longest" }),
        json!({ "resize_mode": 1 }),
        json!({ "interpolation": "nearest" }),
        json!({ "interpolation": "random" }),
        json!({ "interpolation": 2 }),
    ] {
        assert!(open_clip(&json!({ "preprocess_cfg": wrong })).is_err(), "{wrong}");
    }
    // Zero, zero in float32, and what is not finite there.
    for (key, value) in [
        ("image_std", json!([0.0, 1.0, 1.0])),
        ("image_std", json!([1.0, 1e-60, 1.0])),
        ("image_std", json!([1.0, 1.0, 1e-39])),
        ("image_mean", json!([0.0, 1e60, 0.0])),
        ("rescale_factor", json!(1e38)),
    ] {
        let read = hugging_face(&json!({ key: value })).unwrap();
        assert!(read.check().unwrap_err().contains("float32"), "{key} {value}");
    }
    // 2^32 + 224, which is 224 in 32 bits.
    let wide =
        open_clip(&json!({ "preprocess_cfg": { "size": [4_294_967_520u64, 4_294_967_520u64] } }));
    assert!(wide.and_then(Preprocessor::check).unwrap_err().contains("image size"));
}

#[test]
fn every_name_of_clip_s_image_processor_is_read() {
    let plain = hugging_face(&json!({})).unwrap();
    for name in PROCESSORS {
        for key in ["image_processor_type", "feature_extractor_type"] {
            assert_eq!(hugging_face(&json!({ key: name })).unwrap(), plain, "{name}");
        }
    }
    for unknown in [json!({ "do_equalize": true }), json!({ "do_pad": true }), json!([])] {
        assert!(hugging_face(&unknown).is_err(), "{unknown}");
    }
    assert!(open_clip(&json!({ "preprocess_cfg": { "mode": "L" } })).is_err());
    assert!(open_clip(&json!({ "preprocess_cfg": { "sharpen": 1 } })).is_err());
}

#[test]
fn the_settings_of_images_may_be_in_the_processor_s_file() {
    let folder = tempfile::tempdir().unwrap();
    let write =
        |name: &str, json: Value| std::fs::write(folder.path().join(name), json.to_string());
    let read = |of_open_clip: bool| match of_open_clip {
        true => Preprocessor::of_open_clip(folder.path()),
        false => Preprocessor::of_transformers(folder.path()),
    };
    let side = |of_open_clip| read(of_open_clip).map(|found| found.side);
    write(PROCESSOR_FILE, json!({ "processor_class": "CLIPProcessor" })).unwrap();
    assert!(read(false).unwrap_err().problem.contains("with `image_processor`"));
    let of = |side: u32| json!({ "image_processor_type": "CLIPImageProcessorPil", "size": side, "crop_size": side });
    write(PROCESSOR_FILE, json!({ "processor_class": "CLIPProcessor", "image_processor": of(40) }))
        .unwrap();
    assert_eq!(side(false), Ok(40));
    // Both files, the same or not.
    write(IMAGE_PROCESSOR_FILE, of(40)).unwrap();
    assert_eq!(side(false), Ok(40));
    write(IMAGE_PROCESSOR_FILE, of(48)).unwrap();
    assert!(read(false).unwrap_err().problem.contains("differ"));
    std::fs::remove_file(folder.path().join(PROCESSOR_FILE)).unwrap();
    // Beside a configuration of open_clip, each library's weights take their own.
    write(OPEN_CLIP_FILE, json!({ "model_cfg": {}, "preprocess_cfg": { "size": 32 } })).unwrap();
    assert_eq!((side(false), side(true)), (Ok(48), Ok(32)));
    std::fs::remove_file(folder.path().join(IMAGE_PROCESSOR_FILE)).unwrap();
    assert!(read(false).is_err());
    assert_eq!(Preprocessor::from_model_dir(folder.path()).unwrap().side, 32);
}

#[test]
fn open_clip_takes_its_size_from_the_model() {
    let json = json!({ "model_cfg": { "vision_cfg": { "image_size": 32 } }, "preprocess_cfg": { "mean": [0.5, 0.5, 0.5], "resize_mode": "squash" } });
    let preprocessor = open_clip(&json).unwrap();
    assert_eq!(
        (preprocessor.resize, preprocessor.side, preprocessor.mean),
        (Resize::Exactly(32, 32), 32, [0.5; 3])
    );
}

#[test]
fn an_odd_excess_is_rounded_like_in_each_library() {
    let offsets = |rounding: CropRounding| [1, 2, 3, 5, 7].map(|excess| rounding.offset(excess));
    assert_eq!(offsets(CropRounding::Down), [0, 1, 1, 2, 3]);
    assert_eq!(offsets(CropRounding::ToEven), [0, 1, 2, 2, 4]);
}

#[test]
fn a_small_image_is_padded_with_black() {
    let preprocessor = Preprocessor {
        resize: Resize::None,
        filter: Filter::Bicubic,
        side: 4,
        crop_rounding: CropRounding::Down,
        scale: 1.0,
        mean: [0.0; 3],
        deviation: [1.0; 3],
    };
    let padded = preprocessor.centre_crop(&RgbImage::from_pixel(1, 2, image::Rgb([9; 3])));
    let lit: Vec<(u32, u32)> = padded
        .enumerate_pixels()
        .filter(|(_, _, p)| p.0 == [9; 3])
        .map(|(x, y, _)| (x, y))
        .collect();
    assert_eq!(lit, [(2, 1), (2, 2)]);
}
