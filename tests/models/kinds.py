"""Small models with residual blocks, one of each library and form."""

from avalanche_clip.models import create_dual_encoder


def native(cfg, request):
    return create_dual_encoder(cfg)


def custom_text(cfg, request):
    cfg["model_cfg"]["custom_text"] = True
    return create_dual_encoder(cfg)


def layer_scale(cfg, request):
    cfg["model_cfg"]["vision_cfg"]["ls_init_value"] = 0.3
    cfg["model_cfg"]["text_cfg"]["ls_init_value"] = 0.4
    return create_dual_encoder(cfg)


def timm_vit(cfg, request):
    cfg["model_cfg"]["vision_cfg"] = {"timm_model_name": "test_vit", "image_size": 64}
    return create_dual_encoder(cfg)


def hf_clip(cfg, request):
    return create_dual_encoder(request.getfixturevalue("hf_clip_folder"))


def hf_siglip(cfg, request):
    return create_dual_encoder(request.getfixturevalue("hf_siglip_folder"))


KINDS = [native, custom_text, layer_scale, timm_vit, hf_clip, hf_siglip]


def convolutional(cfg):
    cfg["model_cfg"]["vision_cfg"] = {
        "timm_model_name": "test_convnext2",
        "image_size": 32,
    }
    return create_dual_encoder(cfg)
