import torch
from datasets import ClassLabel, Dataset, Features, Image
from sklearn.datasets import load_digits
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, ResNet

from kdcli.config import VectorOptions
from kdcli.methods.base import LayerMethod
from kdcli.tasks.image_classification import ImageClassification

default_cfgs = generate_default_cfgs({"toy_resnet": {"input_size": (3, 32, 32)}})


@register_model
def toy_resnet(pretrained=False, **kwargs):  # --student toy:resnet
    return build_model_with_cfg(ResNet, "toy_resnet", pretrained, block=BasicBlock, layers=[1, 1, 1, 1], **kwargs)


class Unsure(ImageClassification):  # --task toy_unsure: a bonus for entropy (Pereyra et al., 2017)
    like = "image-classification"

    def supervised_loss(self, logits, targets, **options):
        entropy = torch.distributions.Categorical(logits=logits).entropy()
        return super().supervised_loss(logits, targets, **options) - 0.1 * entropy.mean()


def read_digits(rest):  # --data toy:5 for five classes
    found = load_digits(n_class=int(rest))
    rows = {"image": list(found.images.astype("uint8") * 15), "label": found.target}
    return {"train": Dataset.from_dict(rows, Features(image=Image(), label=ClassLabel(int(rest))))}


class CorrelationOptions(VectorOptions):  # --method toy_correlation
    method: str = "toy_correlation"

    def build(self, context):
        return Correlation(self, context)


class Correlation(LayerMethod):
    def forward(self, student, teacher, targets, indices):
        pairs = ((torch.corrcoef(ours), torch.corrcoef(theirs)) for ours, theirs in self.pairs(student, teacher))
        return sum((ours - theirs).square().mean() for ours, theirs in pairs)
