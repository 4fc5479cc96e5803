"""The words that fields of cards can have: tasks, families, signals, statuses and others, with their meanings."""

__all__ = [
    "ACCESSES",
    "ALIGNMENTS",
    "CALLABLE",
    "CONFIDENCES",
    "DIRECTIONS",
    "EXTRACTORS",
    "FAMILIES",
    "GENERATOR_KINDS",
    "HERE",
    "MAPPINGS",
    "PARTS",
    "ROLES",
    "SETTINGS",
    "SIGNALS",
    "STATES",
    "STIMULI",
    "SUBJECTS",
    "TASKS",
    "WEIGHTS",
]

CONFIDENCES = {
    "listed": "in the authors' list of the survey",
    "label": "in an older version of that list",
    "read": "read in the paper or its code",
    "digest": "told by a third party",
    "ours": "our reading or addition",
}
ACCESSES = ("open", "registration", "agreement", "request")
HERE = {
    "implements": "built and trained here",
    "reads": "its files are read here",
    "simulates": "made here, with known truth",
    "measures": "computed here",
    "adapter": "runs here with parts that you provide",
    "planned": "planned, does not run yet",
    "outside": "not here",
}
CALLABLE = ("implements", "reads", "simulates", "measures", "adapter")  # need a reference and a test
SETTINGS = {
    "passive": "a person perceives a stimulus",
    "active": "a person imagines or acts",
    "invasive": "electrodes are inside the skull",
}
SIGNALS = ("fmri", "eeg", "meg")
STIMULI = ("image", "video", "speech", "sound", "music", "object")
TASKS = {
    "IBI": "image to brain to image",
    "IBT": "image to brain to text",
    "IBI+IBT": "image to brain to image and text",
    "IB3D": "image to brain to object",
    "VBV": "video to brain to video",
    "VBT": "video to brain to text",
    "SBS": "sound to brain to sound",
    "SBT": "speech to brain to text",
    "MBM": "music to brain to music",
}
FAMILIES = {
    "Map": "a regressor to latents or conditions of a frozen generator",
    "BPM": "pretraining on other brain data, then a map",
    "BPFA": "pretraining on other brain data, finetuning and alignment",
    "MTF": "a semantic feature, then a generator trained on it",
    "End-to-End": "one network, from the brain to the content",
    "CAEA": "an encoder and a decoder that are tied by cycles",
}
MAPPINGS = ("unknown", "none", "ridge", "linear", "mlp", "lstm", "transformer")
STATES = ("unknown", "none", "frozen", "finetuned", "trained")
ALIGNMENTS = ("unknown", "none", "contrastive", "cycle", "adversarial")
DIRECTIONS = ("decode", "encode", "both")
SUBJECTS = ("one", "many", "few_shot", "in_context")
GENERATOR_KINDS = ("vae", "gan", "diffusion", "autoregressive", "flow", "retrieval")
PARTS = ("early", "ventral", "lateral", "parietal", "auditory", "language", "sensors")
ROLES = ("retinotopy", "faces", "places", "bodies", "words", "objects")
EXTRACTORS = ("control", "vision", "text-image")
WEIGHTS = ("none", "shipped", "yours")
