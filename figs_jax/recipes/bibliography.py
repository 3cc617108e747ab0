"""What to cite: a BibTeX entry per source, found by its arXiv number."""

from __future__ import annotations

import dataclasses

from figs_jax.core.rules import nearest


@dataclasses.dataclass(frozen=True)
class _Entry:
  """A source; `fields` are pairs of a BibTeX field and its text."""

  kind: str
  key: str
  fields: tuple[tuple[str, str], ...]

  def __str__(self) -> str:
    lines = [f"@{self.kind}{{{self.key},"]
    lines += [f"  {name} = {{{text}}}," for name, text in self.fields]
    return "\n".join([*lines, "}"])


def bibtex(*ids: str) -> str:
  """The BibTeX entries of sources, in the order given, each once.

  Args:
    *ids: arXiv numbers such as "2102.04010", a DOI, or "figs-deck"; an entry
      written out, "@article{...}", is taken as it is.

  Returns:
    The entries with an empty line between them.

  Raises:
    ValueError: an unknown id; the nearest known one is suggested.

  >>> print(bibtex("1710.01878"))
  @misc{zhu2017prune,
    author = {Zhu, Michael and Gupta, Suyog},
    title = {To prune, or not to prune: exploring the efficacy of pruning for\
 model compression},
    year = {2017},
    eprint = {1710.01878},
    archivePrefix = {arXiv},
  }
  """
  entries = []
  for source in dict.fromkeys(ids):
    if source.lstrip().startswith("@"):
      entries.append(source.strip())
    elif source in _ENTRIES:
      entries.append(str(_ENTRIES[source]))
    else:
      raise ValueError(f"no source {source!r}, {nearest(source, _ENTRIES)}")
  return "\n\n".join(entries)


def known() -> tuple[str, ...]:
  """Every id that `bibtex` takes, sorted.

  >>> "2402.04744" in known()
  True
  """
  return tuple(sorted(_ENTRIES))


def _arxiv(
  number: str, key: str, author: str, title: str, year: int, **venue: str
) -> tuple[str, _Entry]:
  """An entry by arXiv number; where it appeared decides its kind."""
  kind = "misc"
  if "booktitle" in venue:
    kind = "inproceedings"
  elif "journal" in venue:
    kind = "article"
  fields = {
    "author": author,
    "title": title,
    **venue,
    "year": str(year),
    "eprint": number,
    "archivePrefix": "arXiv",
  }
  return number, _Entry(kind, key, tuple(fields.items()))


_ENTRIES: dict[str, _Entry] = dict(
  [
    _arxiv(
      "2104.08378",
      "mishra2021accelerating",
      "Mishra, Asit and Latorre, Jorge Albericio and Pool, Jeff and"
      " Stosic, Darko and Stosic, Dusan and Venkatesh, Ganesh and Yu, Chong and"
      " Micikevicius, Paulius",
      "Accelerating Sparse Deep Neural Networks",
      2021,
    ),
    _arxiv(
      "2102.04010",
      "zhou2021learning",
      "Zhou, Aojun and Ma, Yukun and Zhu, Junnan and Liu, Jianbo and"
      " Zhang, Zhijie and Yuan, Kun and Sun, Wenxiu and Li, Hongsheng",
      "Learning {N:M} Fine-grained Structured Sparse Neural Networks From"
      " Scratch",
      2021,
      booktitle="International Conference on Learning Representations",
    ),
    _arxiv(
      "2209.07617",
      "kao2022training",
      "Kao, Sheng-Chun and Yazdanbakhsh, Amir and Subramanian, Suvinay and"
      " Agrawal, Shivani and Evci, Utku and Krishna, Tushar",
      "Training Recipe for {N:M} Structured Sparsity with Decaying Pruning"
      " Mask",
      2022,
    ),
    _arxiv(
      "2402.04744",
      "bambhaniya2024progressive",
      "Bambhaniya, Abhimanyu Rajeshkumar and Yazdanbakhsh, Amir and"
      " Subramanian, Suvinay and Kao, Sheng-Chun and Agrawal, Shivani and"
      " Evci, Utku and Krishna, Tushar",
      "Progressive Gradient Flow for Robust {N:M} Sparsity Training in"
      " Transformers",
      2024,
    ),
    _arxiv(
      "2302.01172",
      "lu2023step",
      "Lu, Yucheng and Agrawal, Shivani and Subramanian, Suvinay and"
      " Rybakov, Oleg and De Sa, Christopher and Yazdanbakhsh, Amir",
      "{STEP}: Learning {N:M} Structured Sparsity Masks from Scratch with"
      " Precondition",
      2023,
      booktitle="International Conference on Machine Learning",
    ),
    _arxiv(
      "2409.09099",
      "hu2024sste",
      "Hu, Yuezhou and Zhu, Jun and Chen, Jianfei",
      "{S-STE}: Continuous Pruning Function for Efficient 2:4 Sparse"
      " Pre-training",
      2024,
      booktitle="Advances in Neural Information Processing Systems",
    ),
    _arxiv(
      "2102.08124",
      "hubara2021accelerated",
      "Hubara, Itay and Chmiel, Brian and Island, Moshe and Banner, Ron and"
      " Naor, Joseph and Soudry, Daniel",
      "Accelerated Sparse Neural Training: A Provable and Efficient Method to"
      " Find {N:M} Transposable Masks",
      2021,
      booktitle="Advances in Neural Information Processing Systems",
      volume="34",
      pages="21099--21111",
    ),
    _arxiv(
      "2404.01847",
      "hu2024accelerating",
      "Hu, Yuezhou and Zhao, Kang and Huang, Weiyu and Chen, Jianfei and"
      " Zhu, Jun",
      "Accelerating Transformer Pre-training with 2:4 Sparsity",
      2024,
      booktitle="International Conference on Machine Learning",
    ),
    _arxiv(
      "2407.20584",
      "huang2025pruning",
      "Huang, Weiyu and Hu, Yuezhou and Jian, Guohao and Zhu, Jun and"
      " Chen, Jianfei",
      "Pruning Large Language Models with Semi-Structural Adaptive Sparse"
      " Training",
      2025,
      booktitle="AAAI Conference on Artificial Intelligence",
      doi="10.1609/aaai.v39i23.34592",
    ),
    _arxiv(
      "2203.10991",
      "chmiel2023minimum",
      "Chmiel, Brian and Hubara, Itay and Banner, Ron and Soudry, Daniel",
      "Minimum Variance Unbiased {N:M} Sparsity for the Neural Gradients",
      2023,
      booktitle="International Conference on Learning Representations",
    ),
    _arxiv(
      "1911.11134",
      "evci2020rigging",
      "Evci, Utku and Gale, Trevor and Menick, Jacob and"
      " Castro, Pablo Samuel and Elsen, Erich",
      "Rigging the Lottery: Making All Tickets Winners",
      2020,
      booktitle="International Conference on Machine Learning",
      pages="2943--2952",
    ),
    _arxiv(
      "1707.04780",
      "mocanu2018scalable",
      "Mocanu, Decebal Constantin and Mocanu, Elena and Stone, Peter and"
      " Nguyen, Phuong H. and Gibescu, Madeleine and Liotta, Antonio",
      "Scalable Training of Artificial Neural Networks with Adaptive Sparse"
      " Connectivity inspired by Network Science",
      2018,
      journal="Nature Communications",
      doi="10.1038/s41467-018-04316-3",
    ),
    _arxiv(
      "1710.01878",
      "zhu2017prune",
      "Zhu, Michael and Gupta, Suyog",
      "To prune, or not to prune: exploring the efficacy of pruning for model"
      " compression",
      2017,
    ),
    _arxiv(
      "1308.3432",
      "bengio2013estimating",
      "Bengio, Yoshua and L{\\'e}onard, Nicholas and Courville, Aaron",
      "Estimating or Propagating Gradients Through Stochastic Neurons for"
      " Conditional Computation",
      2013,
    ),
    _arxiv(
      "1506.02626",
      "han2015learning",
      "Han, Song and Pool, Jeff and Tran, John and Dally, William J.",
      "Learning both Weights and Connections for Efficient Neural Networks",
      2015,
      booktitle="Advances in Neural Information Processing Systems",
    ),
    _arxiv(
      "2302.08687",
      "jeong2023vegeta",
      "Jeong, Geonhwa and Damani, Sana and"
      " Bambhaniya, Abhimanyu Rajeshkumar and Qin, Eric and"
      " Hughes, Christopher J. and Subramoney, Sreenivas and Kim, Hyesoon and"
      " Krishna, Tushar",
      "{VEGETA}: Vertically-Integrated Extensions for Sparse/Dense {GEMM} Tile"
      " Acceleration on {CPUs}",
      2023,
      booktitle="{IEEE} International Symposium on High-Performance Computer"
      " Architecture",
    ),
    # The authors' first names as they abbreviate them.
    _arxiv(
      "2504.15377",
      "raj2025scalesim",
      "Raj, R. and Banerjee, S. and Chandra, N. and Wan, Z. and Tong, J. and"
      " Samajdar, A. and Krishna, T.",
      "{SCALE-Sim} v3: A modular cycle-accurate systolic accelerator simulator"
      " for end-to-end system analysis",
      2025,
    ),
    (
      "10.1145/1498765.1498785",
      _Entry(
        "article",
        "williams2009roofline",
        (
          (
            "author",
            "Williams, Samuel and Waterman, Andrew and Patterson, David",
          ),
          (
            "title",
            "Roofline: An Insightful Visual Performance Model for Multicore"
            " Architectures",
          ),
          ("journal", "Communications of the ACM"),
          ("volume", "52"),
          ("number", "4"),
          ("year", "2009"),
          ("doi", "10.1145/1498765.1498785"),
        ),
      ),
    ),
    (
      "figs-deck",
      _Entry(
        "misc",
        "figsdeck",
        (
          ("title", "{FiGS}"),
          (
            "note",
            "Slides on the recipe and the engine of that name. No author, date"
            " or published text is known to us; the recipe is that of arXiv"
            " 2402.04744 with another k",
          ),
        ),
      ),
    ),
  ]
)
