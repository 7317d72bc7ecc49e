"""Generative distillation: fusion, schedule, guided sampling, text, and how the parts are trained."""

import importlib.util
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from ddengine.data import load_data
from ddengine.models import build_model
from ddengine.objective import Env
from ddengine.plan.trainings import first_images
from ddengine.recipe import DataConfig
from ddengine.system import files
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from synth.cite import bibtex
from synth.generative import stages
from synth.generative.config import DenoiserConfig, Folders, FusionConfig, VaeConfig
from synth.generative.fusion import Fusion, Projector, contrastive_loss, fusion_losses
from synth.generative.minimax import Memory
from synth.generative.parts import Prediction
from synth.generative.sampling import Guidance, deviation, modes_of, sample
from synth.generative.schedule import Schedule, Step
from synth.generative.text import word_tokens

CPU = torch.device("cpu")
needs_extra = pytest.mark.skipif(
    importlib.util.find_spec("diffusers") is None
    or importlib.util.find_spec("transformers") is None,
    reason="the extra `generative` is not installed",
)


def numbers(*shape: int, stream: str = "test") -> torch.Tensor:
    return torch.randn(*shape, generator=generator(0, stream))


# The fusion.


def new_fusion(residual: bool = False) -> Fusion:
    torch.manual_seed(0)
    return Fusion(4, 6, 16, width=8, heads=2, layers=2, residual=residual).eval()


def test_fused_latents_follow_from_image_and_text():
    fusion = new_fusion()
    latents = numbers(2, 4, 3, 4).requires_grad_()
    text = numbers(2, 5, 6, stream="text").requires_grad_()
    fused = fusion(latents, text)
    assert fused.shape == latents.shape
    of_latents, of_text = torch.autograd.grad(fused.square().sum(), (latents, text))
    assert of_latents.abs().sum() > 0 and of_text.abs().sum() > 0
    with pytest.raises(UserError, match=r"latents of 16 places, and these have 5 x 4"):
        fusion(numbers(1, 4, 5, 4), text[:1])


def test_a_residual_fusion_starts_as_the_latents():
    latents, text = numbers(2, 4, 4, 4), numbers(2, 5, 6)
    assert torch.equal(new_fusion(residual=True)(latents, text), latents)
    assert not torch.allclose(new_fusion()(latents, text), latents, atol=0.1)


def test_the_contrast_has_the_logarithm_of_the_positives_as_its_floor():
    classes = torch.tensor([0, 0, 1, 1, 1, 2])
    directions = torch.eye(3)[classes]
    loss = contrastive_loss(directions, directions, classes, temperature=0.01)
    floor = sum(math.log(int((classes == c).sum())) for c in classes) / len(classes)
    assert float(loss) == pytest.approx(floor, abs=1e-6)
    worse = contrastive_loss(directions, directions[[2, 2, 0, 0, 5, 1]], classes, 0.01)
    assert worse > loss + 10


def test_the_fusion_learns():
    """The squared error falls, and the contrast: classes become told apart."""
    fusion, classes = new_fusion(), torch.arange(3).repeat(4)
    torch.manual_seed(1)
    projector = Projector(4, 6, width=4)
    text = numbers(3, 5, 6)[classes]
    latents = numbers(12, 4, 4, 4) + 2 * numbers(3, 4, 1, 1, stream="means")[classes]
    ends = torch.full((12,), 4)
    optimiser = torch.optim.AdamW([*fusion.parameters(), *projector.parameters()], 3e-3)
    losses = []
    for _ in range(40):
        contrast, error = fusion_losses(fusion, projector, latents, text, classes, ends)
        losses.append((contrast.item(), error.item()))
        optimiser.zero_grad()
        (0.1 * contrast + error).backward()
        optimiser.step()
    assert losses[-1][0] < losses[0][0] - 0.5
    assert losses[-1][1] < 0.5 * losses[0][1]


# Schedule and sampling.

BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
SCHEDULE = Schedule(torch.cumprod(1 - BETAS, 0))


def exact_denoiser(mean: float, deviation: float, labels_seen: list | None = None):
    """What a perfect denoiser says of latents that are normally distributed."""

    def said(noisy, times, labels):
        if labels_seen is not None:
            labels_seen.append(labels.tolist())
        kept = SCHEDULE.alphas_bar[times].view(-1, 1, 1, 1).to(noisy)
        variance = kept * deviation**2 + 1 - kept
        return Prediction((1 - kept).sqrt() * (noisy - kept.sqrt() * mean) / variance, None)

    return said


def draw(modes=None, *, number=4, denoiser=None, steps=20, streams=None, **options):
    guidance = Guidance(**{"modes": 0.1, "stop": 5, "classes": 1.0, **options.pop("guidance", {})})
    return sample(
        denoiser or exact_denoiser(0.0, 1.0),
        SCHEDULE.steps(steps),
        torch.zeros(number, dtype=torch.long),
        modes,
        streams or [generator(0, image) for image in range(number)],
        shape=(2, 2, 2),
        null=9,
        guidance=guidance,
        **options,
    )


def test_sampling_gives_the_distribution_that_the_denoiser_knows():
    latents = draw(number=600, steps=250, denoiser=exact_denoiser(1.5, 0.5))
    assert float(latents.mean()) == pytest.approx(1.5, abs=0.05)
    assert float(latents.std()) == pytest.approx(0.5, abs=0.03)


@needs_extra
@pytest.mark.parametrize("place", [1, 7, 19])
def test_a_step_is_that_of_diffusers(place):
    from ddengine.system import compat

    assert compat.__name__
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(1000, clip_sample=False, timestep_spacing="linspace")
    theirs.set_timesteps(20)
    steps = SCHEDULE.steps(20)
    assert theirs.timesteps.tolist() == [step.time for step in reversed(steps)]
    # diffusers goes down by a fixed number of times, so both are compared at such times
    time, before = theirs.timesteps[place], theirs.previous_timestep(theirs.timesteps[place])
    after = float(SCHEDULE.alphas_bar[before]) if before >= 0 else 1.0
    step = Step(int(time), float(SCHEDULE.alphas_bar[time]), after)
    noisy, noise = numbers(3, 2, 2, 2), numbers(3, 2, 2, 2, stream="noise")
    with_noise = theirs.step(noise, time, noisy, generator=torch.Generator().manual_seed(1))
    drawn = torch.randn(3, 2, 2, 2, generator=torch.Generator().manual_seed(1))
    clean = step.clean(noisy, noise)
    assert torch.allclose(clean, with_noise.pred_original_sample, atol=1e-3)
    ours = step.mean(noisy, clean) + deviation(step, None) * (drawn if place < 19 else 0)
    assert torch.allclose(ours, with_noise.prev_sample, atol=1e-3)


def test_a_learned_variance_lies_between_both_bounds():
    step = SCHEDULE.steps(20)[7]
    said = torch.tensor([-1.0, 0.0, 1.0])
    low, middle, high = deviation(step, said).tolist()
    assert low == pytest.approx(step.variance**0.5, rel=1e-6)
    assert high == pytest.approx(step.beta**0.5, rel=1e-6)
    assert middle == pytest.approx((low * high) ** 0.5, rel=1e-6)


def test_guidance_of_0_is_no_guidance_to_the_bit():
    modes = numbers(4, 2, 2, 2, stream="modes") * 3
    assert torch.equal(draw(modes, guidance={"modes": 0.0}), draw(None))
    assert torch.equal(draw(modes, guidance={"stop": 19}), draw(None))
    assert not torch.equal(draw(modes), draw(None))


def test_the_distance_to_the_mode_falls_with_the_guidance():
    modes = numbers(4, 2, 2, 2, stream="modes") * 3
    distances = []
    for strength in (0.0, 0.05, 0.1, 0.3, 0.6):
        latents = draw(modes, guidance={"modes": strength, "stop": 0})
        distances.append(float((latents - modes).norm()))
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.7 * distances[0]


def test_images_do_not_depend_on_the_others_of_their_batch():
    modes = numbers(4, 2, 2, 2, stream="modes")
    together = draw(modes)
    alone = draw(modes[2:3], number=1, streams=[generator(0, 2)])
    assert torch.allclose(alone[0], together[2], atol=1e-6)
    assert not torch.equal(together[0], together[1])


def test_guidance_of_classes_goes_beyond_what_is_said_of_the_class():
    """With the label l the denoiser says noise l; 9 stands for none."""
    seen = []

    def denoiser(noisy, times, labels):
        seen.append(sorted(set(labels.tolist())))
        noise = labels.view(-1, 1, 1, 1).to(noisy).expand_as(noisy)
        return Prediction(noise, torch.zeros_like(noisy))

    labels = torch.tensor([1, 2])
    steps = SCHEDULE.steps(2)
    streams = [generator(0, 0), generator(0, 1)]
    options = {"shape": (1, 1, 1), "null": 9}
    led = sample(denoiser, steps, labels, None, streams, guidance=Guidance(classes=3.0), **options)
    assert seen == [[1, 2, 9], [1, 2, 9]]

    def as_combined(noisy, times, labels):
        noise = (9 + 3.0 * (labels - 9)).view(-1, 1, 1, 1).to(noisy)
        return Prediction(noise, torch.zeros_like(noisy))

    streams = [generator(0, 0), generator(0, 1)]
    one = Guidance(classes=1.0)
    assert torch.equal(
        led, sample(as_combined, steps, labels, None, streams, guidance=one, **options)
    )


def test_prototypes_are_left_the_nearer_the_less_is_sampled():
    modes = numbers(40, 2, 2, 2, stream="modes")
    distances = []
    for strength in (0.1, 0.3, 0.6):
        latents = draw(modes, number=40, steps=50, strength=strength, guidance={"modes": 0.0})
        distances.append(float((latents - modes).norm()))
    assert distances == sorted(distances)


def test_modes_are_centres_or_real_latents():
    latents = torch.cat([numbers(5, 2, 2, 2) * 0.1 + shift for shift in (-4, 0, 4)])
    centres = modes_of(latents, 3, "centre")
    assert sorted(round(float(centre.mean())) for centre in centres) == [-4, 0, 4]
    for mode in modes_of(latents, 3, "real"):
        assert any(torch.equal(mode, latent) for latent in latents)
    means = [latents[:5].mean(0), latents[5:10].mean(0), latents[10:].mean(0)]
    for mean in means:
        assert min(float((mean - centre).norm()) for centre in centres) < 1e-5


@pytest.mark.parametrize("steps", [1, 1001])
def test_steps_are_times_of_the_schedule(steps):
    with pytest.raises(UserError, match=r"objective.steps must lie within 2 and the 1000 times"):
        SCHEDULE.steps(steps)


# Text and memory.


def test_names_that_share_words_are_alike():
    tokens, ends = word_tokens(("Ankle boot", "rain boot", "coat"))
    assert ends.tolist() == [2, 2, 1]
    assert torch.equal(tokens[0, 1], tokens[1, 1])
    assert (tokens[2, 2:] == 0).all()
    texts = nn.functional.normalize(tokens[torch.arange(3), ends], dim=1)
    alike, other = float(texts[0] @ texts[1]), float(texts[0] @ texts[2])
    assert alike > 0.3 > abs(other)
    assert torch.equal(tokens[0], word_tokens(("Ankle boot",))[0][0])


def test_minimax_losses_by_hand():
    config = DenoiserConfig(represent=2.0, diversify=3.0, memory=2)
    memory = Memory.empty(config, 2, 2, CPU)
    rows = {"said": [[1.0, 0.0], [0.0, 2.0]], "real": [[1.0, 1.0], [0.0, 1.0]]}
    said, real = (torch.tensor(rows[name]).view(2, 2, 1, 1) for name in ("said", "real"))
    first = memory.loss(said, real, torch.tensor([0, 0]))
    assert float(first) == 0  # nothing was remembered
    again = torch.tensor([[1.0, 0.0]]).view(1, 2, 1, 1).requires_grad_()
    loss = memory.loss(again, again.detach(), torch.tensor([0]))
    # cosines with the real latents 1 / sqrt 2 and 0, with those said 1 and 0
    assert loss.item() == pytest.approx(3.0 * 1 - 2.0 * 0)
    loss.backward()
    assert again.grad.abs().sum() > 0
    assert float(memory.loss(again, again, torch.tensor([1])).detach()) == 0  # of another class


# Training.

TINY_VAE = VaeConfig(widths=(8, 8), epochs=1, batch=16)
TINY_FUSION = FusionConfig(width=8, heads=2, epochs=1, batch=8)
TINY_DENOISER = DenoiserConfig(width=8, heads=2, layers=1, epochs=1, batch=16)


@pytest.fixture(scope="module")
def data():
    return load_data(DataConfig(name="digits", limit=60, size=(8, 8)), CPU)


def tiny(**changes):
    from synth.generative.expert import Generative

    options = {"vae": TINY_VAE, "fusion": TINY_FUSION, "denoiser": TINY_DENOISER, **changes}
    return Generative(**options)


@pytest.fixture(scope="module")
def trained_parts(data, tmp_path_factory):
    """(the parts, what was measured, the folder)."""
    folder = tmp_path_factory.mktemp("parts")
    step = tiny()
    parts = step.new_model(data, generator(0))
    return parts, step.train(parts, data, 0, folder, "fp32"), folder


@needs_extra
def test_each_training_moves_its_part_alone(data, tmp_path):
    from synth.generative import training

    step = tiny()
    parts = step.new_model(data, generator(0))
    job = training.Job(parts, data.train, 0, "fp32", tmp_path)
    latents = numbers(len(data.train), 2, 4, 4, 4)
    made = {
        "vae": training.vae_stage(job, step.vae),
        "fusion": training.fusion_stage(job, step.fusion, latents),
        "denoiser": training.denoiser_stage(job, step.denoiser, latents),
    }
    for name, stage in made.items():
        before = {key: value.clone() for key, value in parts.state_dict().items()}
        training.trained(job, stage)
        for key, value in parts.state_dict().items():
            of_part = key.startswith(f"{name}.")
            assert of_part or torch.equal(value, before[key]), f"{name} moved {key}"
        moved = [k for k, v in parts.state_dict().items() if not torch.equal(v, before[k])]
        assert moved, name
        for key, parameter in parts.named_parameters():
            assert key.startswith(f"{name}.") or parameter.grad is None, f"{name}: {key}"
        parts.zero_grad(set_to_none=True)


def test_texts_are_corrupted_as_often_as_is_said():
    from synth.generative.training import corrupted

    text = torch.ones(50, 40, 3)
    quiet = FusionConfig(no_text=0.0, no_token=0.2, token_noise=0.0)
    seen = corrupted(text, quiet, generator(0))
    assert set(seen.unique().tolist()) == {0.0, 1.0}
    assert float((seen[..., 0] == 0).double().mean()) == pytest.approx(0.2, abs=0.04)
    assert torch.equal(seen[..., 0], seen[..., 2])  # tokens are left out, not their numbers
    noisy = corrupted(text, replace(quiet, no_token=0.0, token_noise=0.5), generator(0))
    assert float((noisy - text).std()) == pytest.approx(0.5, abs=0.03)
    without = [
        float(corrupted(text, replace(quiet, no_text=0.3), generator(i)).sum()) for i in range(200)
    ]
    assert without.count(0.0) / 200 == pytest.approx(0.3, abs=0.1)


@needs_extra
def test_an_update_of_the_fusion_is_the_mean_of_its_batches_by_their_weights(data, tmp_path):
    """The weight of the squared error rises over half of the batches of the training."""
    from synth.generative import training

    fusion = FusionConfig(
        width=8, heads=2, epochs=2, batch=10, batches=2, contrast=0.0, error=(0.2, 2.0),
        dropout=0.0, no_text=0.0, no_token=0.0, token_noise=0.0,
    )  # fmt: skip
    step = tiny(fusion=fusion)
    parts = step.new_model(data, generator(0))
    latents = numbers(len(data.train), 1, 4, 4, 4).expand(-1, 2, -1, -1, -1)
    job = training.Job(parts, data.train, 0, "fp32", tmp_path)
    stage = training.fusion_stage(job, fusion, latents)
    batches = stages.Batches(len(latents), fusion.batch, 0, "fusion")
    num_batches = 2 * batches.per_epoch
    assert stage.steps == num_batches // 2
    for number in (0, 1, stage.steps - 1):
        total = torch.zeros(())
        for batch in (2 * number, 2 * number + 1):
            index = batches.index(batch)
            wanted = latents[index, 0]
            fused = parts.fuse(wanted, data.train.labels[index])
            weight = 0.2 + 1.8 * min(1.0, batch / (num_batches // 2))
            total = total + weight * functional.mse_loss(fused, wanted) / 2
        by_hand = torch.autograd.grad(total, list(parts.fusion.parameters()))
        parts.zero_grad(set_to_none=True)
        assert float(stage.loss(number)) == pytest.approx(total.item(), rel=1e-5)
        for parameter, gradient in zip(parts.fusion.parameters(), by_hand, strict=True):
            assert torch.allclose(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_a_stage_clips_gradients_and_ends_with_the_running_average(tmp_path):
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)

    def loss(number):
        total = 10 * network.weight.sum()
        total.backward()
        return total.detach()

    stage = stages.Stage(
        name="part",
        modules={"part": network},
        optimiser=torch.optim.SGD(network.parameters(), 1.0),
        steps=30,
        loss=loss,
        rate="rate",
        clip=0.5,
        average=0.6,
    )
    stages.run(stage, tmp_path)
    weight = average = 0.0
    for number in range(30):
        weight -= 0.5
        decay = min(0.6, (1 + number) / (10 + number))
        average = decay * average + (1 - decay) * weight
    assert network.weight.item() == pytest.approx(average, rel=1e-5)
    (path,) = tmp_path.glob("*.safetensors")
    for tensors in ({}, {"losses": torch.zeros(31)}, {"losses": torch.zeros(30)}):
        files.write_tensors(path, tensors, {"done": "30", "finished": "1"})
        with pytest.raises(UserError, match=r"is damaged \(it is not of these networks"):
            stages.run(stage, tmp_path)


@needs_extra
def test_the_denoiser_sees_scaled_latents_and_at_times_no_class(data, tmp_path, monkeypatch):
    from synth.generative import training

    step = tiny()
    parts = step.new_model(data, generator(0))
    parts.scale.fill_(3.0)
    job = training.Job(parts, data.train, 0, "fp32", tmp_path)
    latents = numbers(len(data.train), 1, 4, 4, 4).expand(-1, 2, -1, -1, -1)
    index = torch.arange(10, 20)
    classes = data.train.labels[index]
    seen = []
    monkeypatch.setattr(
        type(parts), "denoise", lambda self, *args: seen.append(args) or Prediction(args[0], None)
    )
    for latents_of, share in (("plain", 0.0), ("fused", 1.0)):
        config = replace(TINY_DENOISER, latents=latents_of, no_class=share)
        trainer = training.denoiser_stage(job, config, latents).loss.__self__
        clean, of_classes = trainer._clean(index, generator(0))
        wanted = latents[index, 0] if share == 0 else parts.fuse(latents[index, 0], classes)
        assert torch.equal(clean, 3.0 * wanted) and torch.equal(of_classes, classes)
        with pytest.raises(RuntimeError, match="does not require grad"):
            trainer.update(0)
        assert set(seen[-1][2].tolist()) <= (set(range(10)) if share == 0 else {10})


@needs_extra
def test_a_new_denoiser_leaves_its_tokens_as_they_are_and_says_0():
    from synth.generative.building import new_denoiser
    from synth.generative.parts import Sizes

    sizes = Sizes(2, 4, 1, 8, 64, None, 10)
    network = new_denoiser(TINY_DENOISER, sizes, 4)
    through = []
    for block in network.transformer_blocks:
        block.register_forward_hook(lambda block, given, out: through.append((given[0], out)))
    said = network(
        numbers(2, 4, 4, 4), timestep=torch.tensor([3, 9]), class_labels=torch.tensor([0, 10])
    )
    assert not said.sample.any() and through
    for given, out in through:
        assert torch.equal(given, out)


@needs_extra
def test_latents_are_computed_once_flips_included(trained_parts, data, monkeypatch):
    from synth.generative import training

    parts, measured, folder = trained_parts
    kept = training.latents_of(parts, data.train, folder)
    assert kept.shape == (len(data.train), 2, 4, 4, 4)
    pixels = data.train.pixels.float() / 255
    assert torch.allclose(kept[:, 0], parts.encode(pixels), atol=1e-5)
    assert torch.allclose(kept[:, 1], parts.encode(pixels.flip(3)), atol=1e-5)
    assert float(kept[:, 0].std()) == pytest.approx(1 / measured["scale"], rel=1e-5)
    monkeypatch.setattr(type(parts), "encode", None)  # a second time nothing is encoded
    assert torch.equal(training.latents_of(parts, data.train, folder), kept)


@needs_extra
def test_a_longer_training_gives_images_again(data, tmp_path):
    from synth.generative import training

    step = tiny(vae=replace(TINY_VAE, epochs=12, lr=1e-2))
    parts = step.new_model(data, generator(0))
    pixels = data.train.pixels[:30].float() / 255
    before = (parts.decode(parts.encode(pixels), 1) - pixels).abs().mean()
    job = training.Job(parts, data.train, 0, "fp32", tmp_path)
    training.trained(job, training.vae_stage(job, step.vae))
    after = (parts.decode(parts.encode(pixels), 1) - pixels).abs().mean()
    assert after < 0.7 * before


@needs_extra
@pytest.mark.parametrize("part", ["vae", "fusion", "denoiser"])
def test_an_interrupted_training_goes_on_to_the_bit(
    part, trained_parts, data, tmp_path, monkeypatch
):
    """A stop after the second update of a part; checkpoints are written after every update."""
    uninterrupted, measured, _ = trained_parts
    monkeypatch.setattr(stages, "SECONDS", -1.0)
    update = stages._update

    def stopping(stage, progress):
        if stage.name == part and progress.done == 2:
            raise KeyboardInterrupt
        return update(stage, progress)

    monkeypatch.setattr(stages, "_update", stopping)
    step = tiny()
    with pytest.raises(KeyboardInterrupt):
        step.train(step.new_model(data, generator(0)), data, 0, tmp_path, "fp32")
    monkeypatch.setattr(stages, "_update", update)
    resumed = step.new_model(data, generator(0))
    assert step.train(resumed, data, 0, tmp_path, "fp32") == measured
    for key, value in uninterrupted.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key


@needs_extra
def test_a_denoiser_of_fused_latents_and_minimax_losses_resumes_too(data, tmp_path, monkeypatch):
    from synth.generative import training

    config = replace(TINY_DENOISER, latents="fused", represent=0.1, diversify=0.1, memory=3)
    latents = numbers(len(data.train), 2, 4, 4, 4)

    def ended(folder, stop):
        step = tiny(denoiser=config)
        parts = step.new_model(data, generator(0))
        job = training.Job(parts, data.train, 0, "fp32", folder)
        stage = training.denoiser_stage(job, config, latents)
        if stop:
            stage.steps = 2
            stages._save(stage, _made(stage), folder / "denoiser.safetensors")
        else:
            training.trained(job, stage)
        return parts

    def _made(stage):
        progress = stages._restored(stage, tmp_path / "none")
        progress.losses = torch.zeros(full)
        for parameter in stage.parameters().values():
            parameter.requires_grad_(True)
        while progress.done < 2:
            stages._update(stage, progress)
        return progress

    full = config.epochs * -(-len(data.train) // config.batch)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    whole = ended(tmp_path / "one", stop=False)
    ended(tmp_path / "two", stop=True)
    resumed = ended(tmp_path / "two", stop=False)
    for key, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key


@needs_extra
def test_a_training_that_diverges_says_which_rate_to_lower(data, tmp_path):
    step = tiny(vae=replace(TINY_VAE, lr=1e30, epochs=3))
    with pytest.raises(
        UserError, match=r"The loss of the vae was not finite .* buffer.step.vae.lr"
    ):
        step.train(step.new_model(data, generator(0)), data, 0, tmp_path, "fp32")


# What does not go.


@needs_extra
@pytest.mark.parametrize(
    ("changes", "size", "sentence"),
    [
        ({"vae": replace(TINY_VAE, widths=(8, 8, 8))}, (8, 8), "8 x 8 are too small"),
        ({}, (9, 9), "a square whose side 2 divides"),
        ({}, (8, 10), "a square whose side 2 divides"),
        ({"denoiser": replace(TINY_DENOISER, patch=3)}, (8, 8), "patch 3 does not divide latents"),
        ({"denoiser": replace(TINY_DENOISER, labels=(0, 1))}, (8, 8), "none is named"),
        ({"folder": Folders(vae="nowhere")}, (8, 8), "nowhere is no folder here, and nothing is"),
    ],
)
def test_parts_that_do_not_go(changes, size, sentence):
    data = load_data(DataConfig(name="digits", limit=60, size=size), CPU)
    with pytest.raises(UserError, match=sentence):
        tiny(**changes).new_model(data, generator(0))


@pytest.mark.parametrize(
    ("config", "values", "sentence"),
    [
        (VaeConfig, {"widths": (12,)}, "multiples of 8"),
        (VaeConfig, {"lr": 0.0}, "vae.lr must be positive"),
        (FusionConfig, {"heads": 3}, "heads 3 does not divide"),
        (FusionConfig, {"no_text": 1.5}, "no_text is a probability"),
        (DenoiserConfig, {"width": 20, "heads": 2}, "multiple of 4 times"),
        (DenoiserConfig, {"average": 1.0}, "average must be at least 0 and below 1"),
        (DenoiserConfig, {"represent": -1.0}, "must not be negative"),
    ],
)
def test_options_that_do_not_go(config, values, sentence):
    with pytest.raises(UserError, match=sentence):
        config(**values)


def sampling(**values):
    from synth.generative.method import Sampling

    return Sampling(**values)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"guidance": -0.1}, "guidance must be finite and not negative"),
        ({"class_guidance": float("nan")}, "class_guidance must be finite"),
        ({"strength": 1.0}, "strength must lie between 0 and 1"),
        ({"steps": 1}, "objective.steps must be at least 2"),
    ],
)
def test_sampling_that_does_not_go(values, sentence):
    with pytest.raises(UserError, match=sentence):
        sampling(**values)


class OneExpert:
    """An expert that lies nowhere."""

    epochs = (1,)

    def __init__(self, network):
        self.network = network

    def load(self, expert, epoch):
        return self.network


def env_of(data, network):
    return Env(data.train, None, None, None if network is None else OneExpert(network), CPU)


def test_sampling_needs_parts(data):
    convnet = build_model("convnet-d1-w4-in", data.image_shape, 10, generator(0))
    for network, said in ((None, "none are given"), (convnet, "these are ConvNet")):
        with pytest.raises(UserError, match=f"an encoder and a denoiser as experts, and {said}"):
            sampling().make_images(env_of(data, network), 1, generator(0))


@needs_extra
def test_parts_are_no_teachers(trained_parts, data):
    with pytest.raises(UserError, match="the parts of a generator, which classify no images"):
        trained_parts[0](data.train.images(torch.arange(2)))


@needs_extra
def test_the_training_is_estimated_and_changes_nothing_that_lasts(data):
    step = tiny()
    seconds = step.seconds(step.new_model(data, generator(0)), data)
    longer = tiny(denoiser=replace(TINY_DENOISER, epochs=200))
    assert 0 < seconds < 60
    assert longer.seconds(longer.new_model(data, generator(0)), data) > 2 * seconds


@needs_extra
def test_the_disk_that_latents_take_is_estimated(trained_parts, data):
    parts, _, folder = trained_parts
    assert safetensors_size(folder / "latents.safetensors") == tiny().bytes_beside(parts, data)


def safetensors_size(path):
    """Bytes of the tensors in a file."""
    return sum(tensor.nbytes for tensor in load_file(path).values())


@needs_extra
def test_more_modes_than_images(trained_parts, data):
    with pytest.raises(
        UserError, match=r"ipc asks for 50 modes of class '0', which has \d+ training"
    ):
        sampling().make_images(env_of(data, trained_parts[0]), 50, generator(0))


@needs_extra
def test_images_that_are_led_to_no_modes_may_be_more_than_the_real_ones(trained_parts, data):
    few = replace(data, train=first_images(data.train, 20))
    fewest = min(map(len, few.train.members))
    unguided = sampling(guidance=0.0, steps=2, stop=0, class_guidance=1.0)
    images = unguided.make_images(env_of(few, trained_parts[0]), fewest + 1, generator(0))
    assert len(images) == 10 * (fewest + 1)


# Sets.


@needs_extra
def test_a_set_follows_from_its_seed_and_its_guidance(trained_parts, data):
    env = env_of(data, trained_parts[0])
    few = {"steps": 4, "stop": 1, "guidance": 2.0}

    def made(seed=0, **values):
        return sampling(**{**few, **values}).make_images(env, 2, generator(seed))

    images = made()
    assert images.shape == (20, 1, 8, 8)
    assert images.min() >= 0 and images.max() <= 1
    assert torch.equal(made(), images)
    assert torch.allclose(made(batch=7), images, atol=1e-5)
    others = [
        made(seed=1),
        made(guidance=0.0),
        made(fused=False),
        made(modes="real"),
        made(kind="prototypes"),
        made(kind="reconstructed"),
    ]
    for other in others:
        assert other.shape == images.shape
        assert not torch.equal(other, images)
    assert torch.equal(made(guidance=0.0), made(guidance=0.0, fused=False))


@needs_extra
def test_modes_are_those_of_scaled_latents_fused_or_not(data):
    parts = tiny().new_model(data, generator(0))
    parts.scale.fill_(3.0)
    latents = numbers(len(data.train), 4, 4, 4)
    for is_fused in (False, True):
        modes = sampling(fused=is_fused).modes_of_classes(parts, data.train, latents, 1)
        for label, members in enumerate(data.train.members):
            of_class = latents[members]
            if is_fused:
                of_class = parts.fuse(of_class, torch.full((len(members),), label)).detach()
            assert torch.allclose(modes[label], 3.0 * of_class.mean(0), atol=1e-5)


@needs_extra
def test_reconstructed_images_are_real_ones_through_encoder_and_decoder(trained_parts, data):
    parts = trained_parts[0]
    images = sampling(kind="reconstructed").make_images(env_of(data, parts), 2, generator(3))
    rng = generator(3)
    torch.randint(2**62, (), generator=rng)  # what sampled images start from
    index = data.train.draw_index(0, 2, rng)
    pixels = data.train.pixels[index].float() / 255
    assert torch.allclose(images[:2], parts.decode(parts.encode(pixels), 1), atol=1e-6)


@needs_extra
def test_sampling_goes_on_where_it_was_killed(trained_parts, data, tmp_path, monkeypatch):
    from synth.generative import method

    class Stored(OneExpert, method.StoredExperts):
        identities = preprocesses = fingerprints = origin = summary = None

        def place(self):
            return tmp_path

    env = replace(env_of(data, None), experts=Stored(trained_parts[0]))
    few = sampling(steps=4, stop=1, batch=7)
    whole = few.make_images(env_of(data, trained_parts[0]), 2, generator(0))
    sampled, done = method.sample, []

    def stopping(*args, **options):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(1)
        return sampled(*args, **options)

    monkeypatch.setattr(method, "sample", stopping)
    with pytest.raises(KeyboardInterrupt):
        few.make_images(env, 2, generator(0))
    assert len(list(tmp_path.glob("samples-*/*.safetensors"))) == 2
    monkeypatch.setattr(method, "sample", sampled)
    for other, seed in ((few, 1), (replace(few, guidance=1.0), 0)):  # take nothing of that
        images = other.make_images(env, 2, generator(seed))
        alone = other.make_images(env_of(data, trained_parts[0]), 2, generator(seed))
        assert torch.equal(images, alone)
    monkeypatch.setattr(method, "sample", stopping)
    done.clear()  # one batch of three is left
    assert torch.equal(few.make_images(env, 2, generator(0)), whole)
    assert len(done) == 1
    assert not list(tmp_path.glob("samples-*"))


def test_what_is_cited():
    from synth.catalogue import find

    text = bibtex(find("evlf/cifar10_ipc10_small"))
    for key in ("cai2026evlf", "chansantiago2025mgd3", "peebles2023dit", "rombach2022ldm"):
        assert key in text
    assert "cai2026evlf" not in bibtex(find("mgd3/cifar10_ipc10_small"))
    assert "su2024d4m" in bibtex(find("d4m/cifar10_ipc10_small"))
    assert "radford2021clip" in bibtex(
        find("evlf/imagewoof_ipc10", buffer={"step": {"folder": {"text": "somewhere"}}})
    )


def test_the_protocol_trains_as_long_as_there_are_images():
    from synth.recipes.protocols import generative

    assert [generative(ipc).epochs for ipc in (1, 10, 11, 50, 200, 500, 1000)] == [
        3000, 2000, 1500, 1500, 1000, 500, 300
    ]  # fmt: skip
    assert generative(10, num_classes=100).epochs == 1300


@pytest.mark.parametrize(("size", "stem"), [(32, (3, 1)), (128, (3, 2)), (192, (7, 4))])
def test_resnet_ap_10(size, stem):
    network = build_model("resnet10-ap-x25", (3, size, size), 10, generator(0))
    layers = network.features
    assert (layers[0].kernel_size[0], layers[3].kernel_size) == stem
    assert network(numbers(2, 3, size, size)).shape == (2, 10)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert all(conv.stride == (1, 1) for conv in convolutions)
    assert len(convolutions) == 1 + 4 * 2 + 3
    whole = build_model("resnet10-ap", (3, 224, 224), 10, generator(0))
    assert sum(p.numel() for p in whole.parameters()) == pytest.approx(4.9e6, rel=0.02)
