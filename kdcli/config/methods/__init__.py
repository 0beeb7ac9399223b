"""The options of every method, a module for each kind; what the plan takes by default is data here too."""

from kdcli.config.methods.adversary import AdversaryOptions
from kdcli.config.methods.base import (
    FeaturePair,
    LayerOptions,
    LogitOptions,
    MapOptions,
    MethodSection,
    Needs,
    VectorOptions,
    pair,
)
from kdcli.config.methods.dense import (
    CIRKDOptions,
    CWDLogitsOptions,
    CWDOptions,
    FGDOptions,
    IFVDOptions,
    MGDOptions,
    PKDOptions,
    SKDOptions,
)
from kdcli.config.methods.depth import DenseRegressionOptions
from kdcli.config.methods.features import ProjectionOptions, SpectralOptions
from kdcli.config.methods.generation import GanOptions
from kdcli.config.methods.images import AdversarialOptions, CycleGANOptions, ImageRegressionOptions
from kdcli.config.methods.labels import SupervisedOptions
from kdcli.config.methods.layers import (
    AttentionTransferOptions,
    CorrelationCongruenceOptions,
    CRDOptions,
    FitNetOptions,
    NSTOptions,
    PKTOptions,
    ReviewKDOptions,
    RKDAngleOptions,
    RKDDistanceOptions,
    SimilarityPreservingOptions,
    VIDOptions,
)
from kdcli.config.methods.logits import DeiTOptions, DISTOptions, DKDOptions, LogitKDOptions
from kdcli.config.methods.refilled import LocalClassifierOptions, StochasticTripletOptions
from kdcli.config.methods.registry import (
    METHODS,
    MethodName,
    MethodOptions,
    any_reads_unlabelled,
    find_choice,
    find_method,
    named_methods,
    or_extension,
)

__all__ = [
    "METHODS",
    "AdversarialOptions",
    "AdversaryOptions",
    "AttentionTransferOptions",
    "CIRKDOptions",
    "CRDOptions",
    "CWDLogitsOptions",
    "CWDOptions",
    "CorrelationCongruenceOptions",
    "CycleGANOptions",
    "DISTOptions",
    "DKDOptions",
    "DeiTOptions",
    "DenseRegressionOptions",
    "FGDOptions",
    "FeaturePair",
    "FitNetOptions",
    "GanOptions",
    "IFVDOptions",
    "ImageRegressionOptions",
    "LayerOptions",
    "LocalClassifierOptions",
    "LogitKDOptions",
    "LogitOptions",
    "MGDOptions",
    "MapOptions",
    "MethodName",
    "MethodOptions",
    "MethodSection",
    "NSTOptions",
    "Needs",
    "PKDOptions",
    "PKTOptions",
    "ProjectionOptions",
    "RKDAngleOptions",
    "RKDDistanceOptions",
    "ReviewKDOptions",
    "SKDOptions",
    "SimilarityPreservingOptions",
    "SpectralOptions",
    "StochasticTripletOptions",
    "SupervisedOptions",
    "VIDOptions",
    "VectorOptions",
    "any_reads_unlabelled",
    "find_choice",
    "find_method",
    "named_methods",
    "or_extension",
    "pair",
]
