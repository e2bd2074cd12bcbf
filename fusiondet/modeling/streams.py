"""Which parts of a network process one modality alone: modules declare it, nobody reads it off parameter names."""

from fusiondet.modeling.fusion import MODALITIES

from torch import nn


class ModalityParts:
    """Base of modules some of whose parts process one modality alone."""

    def parts_of(self, modality: str) -> list[nn.Module]:
        """Return the parts that process `modality` alone; [] for none."""
        raise NotImplementedError


class PerModality(nn.ModuleDict, ModalityParts):
    """A module per modality, by its name; entries under any other name are shared."""

    def parts_of(self, modality: str) -> list[nn.Module]:
        """See ModalityParts."""
        return [self[modality]] if modality in self else []


def modality_of_parameters(model: nn.Module) -> dict[nn.Parameter, str]:
    """Return the modality of each parameter of `model` that processes a single one.

    Exchanges and joins belong to both modalities, and so do stages that both go through.
    """
    return {
        parameter: modality
        for module in model.modules()
        if isinstance(module, ModalityParts)
        for modality in MODALITIES
        for part in module.parts_of(modality)
        for parameter in part.parameters()
    }
