//! Pillow's resampling of 8-bit RGB images, bit for bit.
//!
//! Follows Pillow 10 and 11: a horizontal pass, then a vertical one, with 8-bit values in between.
//! Weights are fixed-point numbers with 22 fractional bits, and each pass rounds once. To reduce an
//! image, the filter is stretched over all input pixels of an output pixel.

use image::RgbImage;

/// A resampling filter; numbers are Pillow's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// The nearest pixel (0).
    Nearest,
    /// Three-lobed windowed sinc (1).
    Lanczos,
    /// A triangle (2).
    Bilinear,
    /// Keys' cubic with a = −0.5 (3).
    Bicubic,
    /// The mean of the covered pixels (4).
    Box,
    /// Pillow's Hamming-windowed filter (5).
    Hamming,
}

/// Fractional bits of a weight: 32 bits, less 8 for the pixel and 2 for overshoot of the sum.
const PRECISION: u32 = 22;

impl Filter {
    /// All filters, by their numbers.
    const ALL: [Self; 6] =
        [Self::Nearest, Self::Lanczos, Self::Bilinear, Self::Bicubic, Self::Box, Self::Hamming];

    /// Returns the filter with this number in Pillow.
    pub fn from_number(number: u64) -> Option<Self> {
        Self::ALL.get(usize::try_from(number).ok()?).copied()
    }

    /// Returns the filter with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|filter| filter.name() == name)
    }

    /// Returns its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nearest => "nearest",
            Self::Lanczos => "lanczos",
            Self::Bilinear => "bilinear",
            Self::Bicubic => "bicubic",
            Self::Box => "box",
            Self::Hamming => "hamming",
        }
    }

    /// Returns half the filter's width, in input pixels at scale 1.
    fn support(self) -> f64 {
        match self {
            Self::Nearest => 0.0,
            Self::Box => 0.5,
            Self::Bilinear | Self::Hamming => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        let sinc = |x: f64| {
            if x == 0.0 {
                1.0
            } else {
                (std::f64::consts::PI * x).sin() / (std::f64::consts::PI * x)
            }
        };
        match self {
            Self::Nearest => 1.0,
            Self::Box => f64::from(u8::from(x > -0.5 && x <= 0.5)),
            Self::Bilinear => (1.0 - x.abs()).max(0.0),
            Self::Hamming => {
                let x = x.abs();
                if x == 0.0 {
                    1.0
                } else if x >= 1.0 {
                    0.0
                } else {
                    let x = x * std::f64::consts::PI;
                    // Pillow's constants are single-precision.
                    x.sin() / x * (f64::from(0.54f32) + f64::from(0.46f32) * x.cos())
                }
            }
            Self::Bicubic => {
                const A: f64 = -0.5;
                let x = x.abs();
                if x < 1.0 {
                    ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
                } else if x < 2.0 {
                    (((x - 5.0) * x + 8.0) * x - 4.0) * A
                } else {
                    0.0
                }
            }
            Self::Lanczos => {
                if (-3.0..3.0).contains(&x) {
                    sinc(x) * sinc(x / 3.0)
                } else {
                    0.0
                }
            }
        }
    }
}

/// The input pixels of one output pixel, and their weights.
struct Window {
    first: usize,
    weights: Vec<i32>,
}

/// Returns the windows of all output pixels along one axis.
fn windows(input: u32, output: u32, filter: Filter) -> Vec<Window> {
    let scale = f64::from(input) / f64::from(output);
    let filter_scale = scale.max(1.0);
    let support = filter.support() * filter_scale;
    let inverse = 1.0 / filter_scale;
    (0..output)
        .map(|pixel| {
            let centre = (f64::from(pixel) + 0.5) * scale;
            // Truncation after adding 0.5, like Pillow's C code.
            let first = ((centre - support + 0.5) as i64).max(0);
            let last = ((centre + support + 0.5) as i64).min(i64::from(input));
            let raw: Vec<f64> =
                (first..last).map(|x| filter.weight((x as f64 - centre + 0.5) * inverse)).collect();
            let sum: f64 = raw.iter().sum();
            let fixed = |weight: f64| {
                let weight = if sum == 0.0 { weight } else { weight * (1.0 / sum) };
                let scaled = weight * f64::from(1u32 << PRECISION);
                if weight < 0.0 { (scaled - 0.5) as i32 } else { (scaled + 0.5) as i32 }
            };
            Window { first: first as usize, weights: raw.into_iter().map(fixed).collect() }
        })
        .collect()
}

fn round(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// Resizes an image like `PIL.Image.resize((width, height), filter)`. A width or height of zero
/// gives an empty image.
pub fn resize(image: &RgbImage, width: u32, height: u32, filter: Filter) -> RgbImage {
    if image.dimensions() == (width, height) || image.width() == 0 || image.height() == 0 {
        return image.clone();
    }
    if filter == Filter::Nearest {
        let (columns, rows) = (nearest(image.width(), width), nearest(image.height(), height));
        return RgbImage::from_fn(width, height, |x, y| {
            *image.get_pixel(columns[x as usize], rows[y as usize])
        });
    }
    let wide =
        if image.width() == width { image.clone() } else { horizontally(image, width, filter) };
    if wide.height() == height { wide } else { vertically(&wide, height, filter) }
}

/// Returns the input pixel of every output pixel along one axis. Positions are running sums, as in
/// Pillow, because their rounding errors affect which pixel is nearest.
fn nearest(input: u32, output: u32) -> Vec<u32> {
    let scale = f64::from(input) / f64::from(output);
    let positions = std::iter::successors(Some(scale * 0.5), |position| Some(position + scale));
    positions.take(output as usize).map(|position| (position as u32).min(input - 1)).collect()
}

fn horizontally(image: &RgbImage, width: u32, filter: Filter) -> RgbImage {
    let windows = windows(image.width(), width, filter);
    let mut out = RgbImage::new(width, image.height());
    let stride = 3 * image.width() as usize;
    for (row, target) in
        image.as_raw().chunks_exact(stride).zip(out.chunks_exact_mut(3 * width as usize))
    {
        for (window, pixel) in windows.iter().zip(target.chunks_exact_mut(3)) {
            let mut sums = [1i32 << (PRECISION - 1); 3];
            for (source, &weight) in row[3 * window.first..].chunks_exact(3).zip(&window.weights) {
                for (sum, &value) in sums.iter_mut().zip(source) {
                    *sum += i32::from(value) * weight;
                }
            }
            for (value, sum) in pixel.iter_mut().zip(sums) {
                *value = round(sum);
            }
        }
    }
    out
}

fn vertically(image: &RgbImage, height: u32, filter: Filter) -> RgbImage {
    let windows = windows(image.height(), height, filter);
    let mut out = RgbImage::new(image.width(), height);
    let stride = 3 * image.width() as usize;
    let source = image.as_raw();
    for (window, target) in windows.iter().zip(out.chunks_exact_mut(stride)) {
        let mut sums = vec![1i32 << (PRECISION - 1); stride];
        for (row, &weight) in
            source[stride * window.first..].chunks_exact(stride).zip(&window.weights)
        {
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum += i32::from(value) * weight;
            }
        }
        for (value, sum) in target.iter_mut().zip(sums) {
            *value = round(sum);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_image_stays_flat() {
        let image = RgbImage::from_pixel(7, 5, image::Rgb([3, 128, 255]));
        for filter in [
            Filter::Nearest,
            Filter::Lanczos,
            Filter::Bilinear,
            Filter::Bicubic,
            Filter::Box,
            Filter::Hamming,
        ] {
            for (width, height) in [(1, 1), (3, 9), (20, 2)] {
                let resized = resize(&image, width, height, filter);
                assert_eq!(resized.dimensions(), (width, height));
                assert!(resized.pixels().all(|p| p.0 == [3, 128, 255]), "{filter:?}");
            }
        }
    }

    #[test]
    fn weights_of_a_window_sum_to_one() {
        for filter in
            [Filter::Lanczos, Filter::Bilinear, Filter::Bicubic, Filter::Box, Filter::Hamming]
        {
            for (input, output) in [(10, 3), (3, 10), (224, 224), (1, 5), (1000, 7)] {
                for window in windows(input, output, filter) {
                    let sum: i64 = window.weights.iter().map(|&w| i64::from(w)).sum();
                    assert!(
                        (sum - (1 << PRECISION)).abs() <= window.weights.len() as i64,
                        "{filter:?} {input} to {output}"
                    );
                }
            }
        }
    }
}
