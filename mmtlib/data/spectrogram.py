"""Log-mel spectrograms, the audio that a model sees."""

import warnings

from jaxtyping import Float
from torch import Tensor, nn
from torchaudio.functional import melscale_fbanks
from torchaudio.transforms import MelSpectrogram

from mmtlib.files import Number

LOG_OFFSET = 1e-6  # added to the power before the logarithm; its logarithm is the value of digital silence
LOW_HZ = 20.0  # lower edge of the lowest mel band


class FeatureError(ValueError):
    """Settings or a data set from which no features can be made; one sentence with the remedy."""


class LogMel(nn.Module):
    """Log-mel spectrogram, time first: natural log of (HTK mel power + 1e-6), Hann window, no edge padding.

    The FFT is the shortest power of two, at least the window, that leaves no mel band without a bin: at 128
    bands and 25 ms a 512-point FFT would leave the lowest ones constant. The number of frames depends on the
    window only: 1 + (samples - window) // hop. Raises FeatureError for settings that give no spectrogram. Our
    reading: the papers give neither window nor mel scale.
    """

    def __init__(self, sample_rate: int = 16000, mel_bins: int = 128, window_ms: Number = 25, hop_ms: Number = 10):
        super().__init__()
        self.window = round(sample_rate * window_ms / 1000)
        self.hop = round(sample_rate * hop_ms / 1000)
        if self.window < 2 or self.hop < 1 or mel_bins < 1:
            given = f"window_ms {window_ms}, hop_ms {hop_ms} and mel_bins {mel_bins}"
            raise FeatureError(f"{given} give no spectrogram at {sample_rate} Hz; raise what is too small.")
        high = sample_rate / 2
        n_fft = 1 << (self.window - 1).bit_length()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchaudio warns of the empty bands that are looked for here
            while (melscale_fbanks(n_fft // 2 + 1, LOW_HZ, high, mel_bins, sample_rate).amax(dim=0) == 0).any():
                n_fft *= 2
                if n_fft > 32 * self.window:
                    raise FeatureError(f"mel_bins {mel_bins} are too many for {window_ms} ms; use fewer.")
        self.mel = MelSpectrogram(
            sample_rate, n_fft, self.window, self.hop, LOW_HZ, high, n_mels=mel_bins, center=False
        )
        # The transform centres the window in the FFT; this much of its input on each side has no weight.
        self.margin = ((n_fft - self.window) // 2, n_fft - self.window - (n_fft - self.window) // 2)

    def num_frames(self, samples: int) -> int:
        """Frames that so many samples give."""
        return max(0, 1 + (samples - self.window) // self.hop)

    def forward(self, waveform: Float[Tensor, "*batch samples"]) -> Float[Tensor, "*batch time mel"]:
        power = self.mel(nn.functional.pad(waveform, self.margin))
        return (power + LOG_OFFSET).log().transpose(-1, -2)
