"""The only reader of rasters, for training and inference alike: files in, float32 (C, H, W) with NaN = no data out.

Channels: optical bands as the file has them, then SAR bands in dB (`stretched_uint8` untouched); complex ones are
detected to power, and a band "HH+VV" is the mean power of those of its polarisations that are known. No data is a
property of a modality: a pixel that is invalid there is NaN in all its bands. Invalid means: all bands equal the
declared nodata number (or, where the file declares none, the dataset's number), any band NaN or infinite, outside the
alpha band or mask, or SAR power <= 0 in every band (a single band <= 0 is set to SAR_FLOOR_DB).

Resampling happens in linear power and never mixes in invalid pixels: values times validity and validity itself are
warped together and divided; a pixel of the result is valid where its nearest source pixel is.

Files are untrusted: local paths only, an explicit list of drivers (a VRT may open any other file), sizes checked
before memory is taken.
"""
