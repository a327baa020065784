//! The addresses in a manifest.

use super::{DataSection, Manifest, ReleaseSection};

impl Manifest {
    /// Returns the address of every input, by its field. Not among them are the release's own, and
    /// those in `concepts.list`, where one text may have several.
    pub fn inputs_mut(&mut self) -> Vec<(&'static str, &mut String)> {
        // All fields are listed, so that a new field with addresses fails to compile until it is
        // handled here.
        let DataSection {
            retain,
            retain_texts,
            retain_images,
            protect,
            validation,
            test,
            classes,
            template: _,
        } = &mut self.data;
        let ReleaseSection { uri: _, target, salt, names: _, license: _, base_model: _ } =
            &mut self.release;
        let mut inputs = vec![("model.uri", &mut self.model.uri), ("data.classes", classes)];
        for (field, files) in [
            ("data.retain", retain),
            ("data.retain_texts", retain_texts),
            ("data.retain_images", retain_images),
            ("data.validation", validation),
            ("data.test", test),
        ] {
            inputs.extend(files.iter_mut().map(|file| (field, file)));
        }
        inputs.extend(protect.iter_mut().map(|file| ("data.protect", file)));
        inputs.extend(self.concepts.table.iter_mut().map(|file| ("concepts.table", file)));
        inputs.extend(target.iter_mut().map(|target| ("release.target", &mut target.uri)));
        inputs.extend(salt.iter_mut().map(|file| ("release.salt", file)));
        inputs
    }
}
