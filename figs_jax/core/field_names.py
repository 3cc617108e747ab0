"""Hints for the names of fields that do not exist.

A field is found by its spelling, or by what PyTorch, timm, Hugging Face,
jaxpruner and others call it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

# Fields by what others call them, without capitals, "_" and "-". Of several
# fields, those that a configuration has are suggested.
_MEANT = {
  "total_steps": (
    "steps numsteps maxsteps trainsteps numtrainsteps totaltrainsteps epochs"
    " epoch numepochs maxepochs trainepochs totalepochs numtrainepochs nepochs"
    " niters iters iterations maxiter maxiters"
  ),
  "batch_size": (
    "batch bs bsz batchsize trainbatchsize globalbatchsize"
    " perdevicetrainbatchsize perdevicebatchsize microbatchsize minibatch"
  ),
  "data.eval_batch_size": (
    "evalbatchsize perdeviceevalbatchsize valbatchsize testbatchsize"
    " validationbatchsize"
  ),
  "grad_accum_steps": (
    "accumulate accumsteps accumulationsteps gradaccum gradaccumsteps"
    " gradaccumulation gradientaccumulation gradientaccumulationsteps"
    " accumulategradbatches microbatches nummicrobatches"
  ),
  "seed": "randomseed rngseed randomstate manualseed",
  "seeds": "numseeds nseeds repeats runs numruns trials",
  "model.width": "hiddensize embeddim dmodel embdim nembd dim hidden",
  "model.depth": "layers numlayers numhiddenlayers nlayers nlayer blocks",
  "model.heads": "numheads nheads nhead numattentionheads",
  "model.mlp_dim": "intermediatesize dff ffdim ffndim mlphidden dimfeedforward",
  "model.dropout": "dropoutrate drop droprate hiddendropout hiddendropoutprob",
  "model.attention_dropout": (
    "attndrop attndropout attndroprate attentionprobsdropoutprob"
  ),
  "model.drop_path": (
    "droppath droppathrate stochasticdepth stochasticdepthprob"
  ),
  "model.dtype": (
    "dtype precision fp16 bf16 fp32 half amp mixedprecision autocast"
    " computedtype torchdtype halfprecision"
  ),
  "model.remat": (
    "checkpointing gradientcheckpointing gradcheckpointing remat rematerialize"
    " activationcheckpointing"
  ),
  "model.pool": "pool globalpool pooling classifier",
  "family variant": (
    "arch architecture modelname modeltype modelnameorpath backbone network net"
    " preset modelsize"
  ),
  "variant": "patch patchsize",
  "pattern": (
    "sparsity targetsparsity sparsityratio sparsitylevel sparsitytype density"
    " nm n m nmpattern patterns rules rule amount pruneratio pruningratio"
    " prunerate keepratio sparse mask masks prunepattern nmsparsity"
  ),
  "optimizer.learning_rate": (
    "lr learningrate baselr maxlr peaklr initlr initiallr stepsize eta"
    " baselearningrate peaklearningrate"
  ),
  "optimizer.warmup_steps": (
    "warmup warmupepochs warmupratio warmupsteps warmupiters warmupproportion"
    " warmupfraction numwarmupsteps warmuplr linearwarmup"
  ),
  "optimizer.schedule": (
    "scheduler schedule lrscheduler lrschedulertype lrschedule sched decaytype"
    " lrdecay cosine annealing"
  ),
  "optimizer.weight_decay": "wd weightdecay decay l2 l2reg regularization",
  "optimizer.b1": "beta1 betas adambeta1 beta",
  "optimizer.b2": "beta2 adambeta2",
  "optimizer.eps": "epsilon adamepsilon opteps",
  "optimizer.clip": (
    "gradclip clip clipgrad clipgradnorm clipnorm maxgradnorm maxnorm gradnorm"
    " gradientclipping gradientclipval gradclipnorm"
  ),
  "optimizer.momentum": "sgdmomentum mu",
  "optimizer.name": "opt optim optimizer optimizertype solver",
  "ema_decay": "ema modelema emarate modelemadecay emamomentum polyak",
  "label_smoothing": "smoothing labelsmoothingfactor smooth",
  "loss": "criterion lossfn lossfunction bceloss objective",
  "mixup": "mixupalpha mix cutmix",
  "log_every": (
    "loginterval logfreq logsteps loggingsteps logeverynsteps printfreq"
  ),
  "checkpoint_every": (
    "savesteps saveinterval saveevery savefreq checkpointinterval"
    " checkpointfreq evalevery evalinterval evalsteps evalfreq valinterval"
    " valcheckinterval validateevery saveperiod"
  ),
  "keep": "savetotallimit keepcheckpoints maxtokeep checkpointhist",
  "mesh.data mesh.fsdp": (
    "gpus gpu numgpus ngpus ngpu devices numdevices tpus cores numtpus nproc"
    " worldsize pernodegpus dp dataparallel ddp fsdp zero"
  ),
  "mesh.tensor": (
    "tp tensorparallel tpsize tensorparallelsize modelparallel mp"
    " tensormodelparallelsize modelparallelsize"
  ),
  "init_from": (
    "checkpoint ckpt ckptpath checkpointpath pretrained pretrainedpath weights"
    " pretrainedmodel resume loadfrom finetune initcheckpoint resumefrom"
    " finetunefrom initialcheckpoint"
  ),
  "data.name": "dataset datasetname data tfds datasetsname",
  "data.data_dir": (
    "datadir dataroot root datapath path datasetdir datasetpath datafolder"
  ),
  "data.train_split": "trainsplit split traindata trainfile",
  "data.eval_split": (
    "evalsplit valsplit testsplit validationsplit val validation valdata"
  ),
  "data.workers": "numworkers workers nworkers numproc dataloadernumworkers",
  "data.image_size": (
    "imgsize imagesize inputsize resolution res cropsize imsize height"
  ),
  "data.augment": "aug augmentation randaugment autoaugment aa transforms",
  "data.mean data.std": "mean std normalize norm pixelmean",
  "data.input_length": (
    "maxseqlength maxlength seqlen seqlength contextlength blocksize"
    " inputlen maxlen sequencelength maxsourcelength"
  ),
  "data.target_length": "targetlen maxtargetlength outputlength",
  "data.vocabulary": "tokenizer vocab vocabfile tokenizername sentencepiece",
  "data.beams": "numbeams beamsize beam beamwidth",
}  # fmt: skip
# Words for what stands elsewhere, and where.
_ELSEWHERE = {
  "device cuda cpu usegpu usecuda nocuda accelerator backend platform": (
    "JAX takes an accelerator by itself; the variable JAX_PLATFORMS=cpu (or"
    " cuda, tpu) chooses one"
  ),
  "outputdir outdir output out logdir savedir workdir exp expname"
  " experiment runname rundir checkpointdir project": (
    "the directory of a run is --workdir"
  ),
  "recipename recipe method pruner algorithm sparsitymethod": (
    "the recipe stands after the file, as in --config=FILE:figs"
  ),
}
_FIELDS = {
  word: fields.split()
  for fields, words in _MEANT.items()
  for word in words.split()
}
_NOTES = {
  word: note for words, note in _ELSEWHERE.items() for word in words.split()
}
_EPOCHS = " (epochs * examples // batch_size)"
_RULES = " (rules such as 'ff: 2:4')"


def near(name: str, known: Iterable[str], prefix: str = "") -> str:
  """A hint with at most five fields that an unknown one may mean.

  Args:
    name: Dotted name of the unknown field.
    known: Dotted names of the known ones.
    prefix: Text before each suggested field, such as "--config.".

  >>> near("epochs", ["total_steps", "seed"])
  '; did you mean total_steps (epochs * examples // batch_size)?'
  """
  known, last = list(known), name.rpartition(".")[2].lower()
  word = re.sub(r"[-_]", "", last)
  close = [
    field
    for meant in _FIELDS.get(word, ())
    for field in known
    if f".{field}".endswith(f".{meant}")  # in a study also below common
  ]
  same = [field for field in known if field.rpartition(".")[2] == last]
  if not close and not same and word in _NOTES:
    return f"; {_NOTES[word]}"
  close += same
  if not close:
    close += difflib.get_close_matches(name, known, 5, 0.6)
    ends = {field.rpartition(".")[2]: field for field in known}
    close += [ends[e] for e in difflib.get_close_matches(last, ends, 5, 0.7)]
  if not close:
    return "; --help lists all fields"
  fields = ", ".join(f"{prefix}{x}" for x in list(dict.fromkeys(close))[:5])
  epochs = "epoch" in last and close[0].endswith("total_steps")
  note = _EPOCHS if epochs else ""
  note = _RULES if fields == f"{prefix}pattern" else note
  return f"; did you mean {fields}{note}?"
