"""A strategy that drives the real evaluator without a model or data."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F


class Experience:
    def __init__(self, index, stream):
        self.current_experience = index
        self.origin_stream = stream
        self.task_labels = [0]

    def logging(self):
        return self


class Stream(list):
    def __init__(self, name, length):
        super().__init__()
        self.name = name
        self.extend(Experience(index, self) for index in range(length))


def unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator), dim=-1)


def experience_batches(seed, images=6, batches=2):
    """Batches of (features, batch) with two captions per image."""
    result = []
    for part in range(batches):
        number = seed * 100 + part
        features = SimpleNamespace(
            image_features=unit(images, 4, seed=number),
            text_features=unit(2 * images, 4, seed=number + 50),
        )
        first = 1 + 2 * images * part
        tokens = torch.arange(first, first + 2 * images)[:, None]
        batch = {"owner": torch.arange(images).repeat(2), "text": tokens}
        result.append((features, batch))
    return result


class Silent:
    """A logger that keeps what it is given."""

    def __init__(self):
        self.values = []

    def log_metrics(self, values):
        self.values.extend((v.name, v.value, v.x_plot) for v in values)


class FakeStrategy:
    """Calls the hooks in the order of Avalanche's templates."""

    def __init__(self, evaluator, stream_length=3):
        self.evaluator = evaluator
        self.clock = SimpleNamespace(
            train_iterations=0,
            train_exp_counter=0,
            train_exp_epochs=1,
            total_iterations=0,
        )
        self.visits = SimpleNamespace(current=None, number_of=lambda step: 0)
        self.experience = None
        self.is_eval = self.is_training = False
        self.train_stream = Stream("train", stream_length)
        self.test_stream = Stream("test", stream_length)
        self.dataloader = [0, 1]
        self.model = SimpleNamespace(tokenizer=SimpleNamespace(pad_id=0))
        self.mb_y = torch.zeros(6)
        self.mb_task_id = torch.zeros(6)

    def train(self, index, iterations=2, nested_eval=False):
        self.is_training, self.is_eval = True, False
        self.evaluator.before_training(self)
        self.experience = self.train_stream[index]
        self.visits.current = SimpleNamespace(
            stream=self.train_stream.name, place=index
        )
        self.evaluator.before_training_exp(self)
        for _ in range(iterations):
            self.evaluator.after_training_iteration(self)
            self.clock.train_iterations += 1
        if nested_eval:
            self.eval()
            self.is_training, self.is_eval = True, False
            self.experience = self.train_stream[index]
        self.evaluator.after_training_epoch(self)
        self.evaluator.after_training_exp(self)
        self.clock.train_exp_counter += 1
        self.evaluator.after_training(self)
        self.experience = None

    def eval(self, experiences=None):
        self.is_training, self.is_eval = False, True
        self.experience = None
        self.evaluator.before_eval(self)
        for experience in experiences or self.test_stream:
            self.experience = experience
            self.evaluator.before_eval_exp(self)
            seed = (
                self.experience.current_experience + 10 * self.clock.train_exp_counter
            )
            for self.mb_features, self.mb_x in experience_batches(seed):
                self.evaluator.before_eval_iteration(self)
                self.evaluator.after_eval_iteration(self)
            self.evaluator.after_eval_exp(self)
        self.evaluator.after_eval(self)
        self.experience = None
        return self.evaluator.get_last_metrics()
