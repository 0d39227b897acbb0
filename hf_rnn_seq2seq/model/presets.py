"""The published systems as settings of one configuration; each docstring names the source of every choice.

`RnnSeq2SeqConfig.from_preset(name, **overrides)` builds one. Sizes are the paper's. Each can be overridden separately: a
smaller `hidden_size` does not change `encoder_hidden_size`, `context_size` and `readout_size` if the preset sets them; a
size that the preset does not set follows `hidden_size`. "Departs" lists the differences from the paper, and the reasons.

These differences hold for every preset. Every product has a bias unless the docstring says otherwise; the papers omit biases
from their equations. The decoder starts from the vector of `<s>`; some papers start from zeros or from the end mark of
the source, which is the same function with one learned vector. Sentences end in `</s>` on both sides. Weights are
initialized uniformly (`initializer_range`), also where a paper uses Gaussian or orthogonal ones.

"Time loop" names the options that exclude the fast paths. A training step takes 1.1 times as long with
`gru_reset="before"` as without it, 1.15 times with the conditional GRU and 1.3 times with `layer_norm` (one thread of a CPU,
64 pairs of 15 words, 256 units, 4,000 words). On a GPU a loop over small kernels costs far more.
"""

from collections.abc import Callable

Field = bool | int | float | str | list[int]
Fields = dict[str, Field | dict[str, Field]]  # of `RnnSeq2SeqConfig`; of its `encoder` a dict
PRESETS: dict[str, Callable[[], Fields]] = {}  # of `RnnSeq2SeqConfig`


def _preset(build: Callable[[], Fields]) -> Callable[[], Fields]:
    """Registers a preset under its function's name."""
    PRESETS[build.__name__] = build
    return build


@_preset
def sutskever2014() -> Fields:
    """Sutskever, Vinyals and Le 2014, Sequence to Sequence Learning with Neural Networks.

    * Section 3.4: 4 layers of 1000 LSTM cells, word vectors of 1000, 160,000 source and 80,000 target words, a plain
      softmax over them, weights uniform in plus or minus 0.08, no dropout.
    * Section 3.3: the source is read backwards (`reverse_source`), the target is not.
    * Section 2: the encoder's last state is all that the decoder reads of the source (`initial_state`, `copy`): layer l of
      the decoder starts from h and c of layer l of the encoder.

    Departs: `</s>` is reversed too, so it comes first. The cell is torch's LSTM; the cell of Graves 2013, which the paper
    cites, has peephole connections.

    Time loop: none; every layer is one fused kernel.
    """
    return dict(
        vocab_size=80000,
        source_vocab_size=160000,
        embedding_size=1000,
        hidden_size=1000,
        encoder_layers=4,
        decoder_layers=4,
        cell_type="lstm",
        bidirectional="none",
        reverse_source=True,
        context="initial_state",
        bridge="copy",
        readout="linear",
        initializer_range=0.08,
    )


@_preset
def cho2014() -> Fields:
    """Cho et al. 2014, Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine Translation.

    * Section 4.1: 1000 units on both sides, word vectors of 100, 500 maxout units of 2 inputs each,
      15,000 words.
    * Section 2.3, equations 5 to 8: the gated unit, its reset gate before the recurrent product (`gru_reset`).
    * Appendix A.1.1: one layer, one direction; c = tanh(V h_N) (`context_size`).
    * Appendix A.1.2: h'_0 = tanh(V' c) (`bridge="dense"` reads c); c enters every gate at every step
      (`context="every_step"`); s' = O_h h'_t + O_y y_{t-1} + O_c c, the larger of each pair of
      its units, then the softmax.

    Departs: in the decoder of appendix A.1.2 the reset gate multiplies U'h + C c; here it multiplies h only, as in
    equation 8. The paper scores phrases with the model; here it translates sentences.

    Time loop: yes, for `gru_reset="before"` on both sides. `gru_reset="after"` takes the fused kernel.
    """
    return dict(
        vocab_size=15000,
        embedding_size=100,
        hidden_size=1000,
        encoder_hidden_size=1000,
        cell_type="gru",
        gru_reset="before",
        bidirectional="none",
        context="every_step",
        context_size=1000,
        bridge="dense",
        readout="maxout",
        readout_size=500,
        readout_embedding=True,
    )


@_preset
def bahdanau2014() -> Fields:
    """Bahdanau, Cho and Bengio 2014, Neural Machine Translation by Jointly Learning to Align and Translate.

    * Section 4.2 and appendix A.2: 1000 units in the decoder and in each direction of the encoder, word vectors of 620,
      alignment layer of 1000 (`attention_size` follows `hidden_size`), 500 maxout units, 30,000 words.
    * Section 3.2: bidirectional encoder. Section 3.1 and appendix A.1.2: additive score of the query s_{i-1},
      before the cell (`attention_order`).
    * Appendix A.1.1 and A.2.2: gated units with the reset gate before the recurrent product; c_i enters every gate;
      s_0 = tanh(W_s h_1) from the backward encoder (`backward_tanh`); the readout
      t~_i = U_o s_{i-1} + V_o E y_{i-1} + C_o c_i reads the PREVIOUS state (`readout_state`); of each pair
      of its units the larger one counts.

    Departs: in no equation.

    Time loop: in the encoder, for `gru_reset="before"`; the fused scan covers the decoder in training.
    """
    return dict(
        vocab_size=30000,
        embedding_size=620,
        hidden_size=1000,
        encoder_hidden_size=1000,
        cell_type="gru",
        gru_reset="before",
        bidirectional="all",
        context="attention",
        attention_type="additive",
        attention_order="before_cell",
        bridge="backward_tanh",
        readout="maxout",
        readout_size=500,
        readout_embedding=True,
        readout_state="previous",
    )


@_preset
def luong2015() -> Fields:
    """Luong, Pham and Manning 2015, Effective Approaches to Attention-based Neural Machine Translation.

    * Section 4.1: 4 layers of 1000 LSTM cells, word vectors of 1000, 50,000 words, weights uniform in plus or minus
      0.1, dropout 0.2, reversed source.
    * Section 3: the query is the top state after the cell; attentional vector h~ = tanh(W_c [c; h]) without bias (equation 5),
      softmax(W_s h~) without bias (equation 6).
    * Section 3.1: `attention_type` is `general`, or `dot`, `concat`, `location` (needs `max_source_positions`).
    * Section 3.2: `attention_window="local_m"` or `"local_p"` with D = `attention_window_size` = 10; the Gaussian of
      equation 10 multiplies the weights after the softmax.
    * Section 3.3: h~ is an input of the first layer at the next step (`input_feeding`).
    * Section 2: encoder and decoder are stacks of equal depth, the decoder's first states are the encoder's last ones (`copy`).

    Departs: `concat` is v . tanh(W_q h + W_k s + b), the same function as v . tanh(W [h; s]) except for b. A source longer
    than `max_source_positions` is an error with `location`; the paper cuts it.

    Time loop: yes, for input feeding; the fused scan covers it in training, at any depth. With `input_feeding=False` none.
    """
    return dict(
        vocab_size=50000,
        embedding_size=1000,
        hidden_size=1000,
        encoder_layers=4,
        decoder_layers=4,
        cell_type="lstm",
        bidirectional="none",
        reverse_source=True,
        context="attention",
        attention_type="general",
        attention_order="after_cell",
        attention_window="global",
        attention_window_size=10,
        input_feeding=True,
        bridge="copy",
        readout="tanh",
        output_bias=False,
        dropout=0.2,
        initializer_range=0.1,
    )


@_preset
def gnmt2016() -> Fields:
    """Wu et al. 2016, Google's Neural Machine Translation System.

    * Section 3 and figure 1: 8 encoder and 8 decoder layers of 1024 LSTM cells, word vectors as wide.
    * Section 3.1: residual connections from the third layer on (`residual_start`).
    * Section 3.2: the first encoder layer is bidirectional, the others are not.
    * Equation 4: the score is a network with one hidden layer of 1024 (`additive`); the query is y_{i-1}, the output of the
      bottom decoder layer at the previous step (`before_cell`, `attention_layer="bottom"`); its context goes to all
      decoder layers (`context_layers="all"`), and not to the softmax (`readout_context=False`).
    * Section 4.1: wordpieces, 32,000 for both sides. Section 8.3: weights uniform in plus or minus 0.04, dropout 0.2
      (English-French; 0.3 for English-German).

    Departs: the paper does not state the decoder's first state; here it is zero. Its beam search with the length and
    coverage penalties of section 7 is an option of decoding (`model.search`), not of the model.

    Time loop: over the bottom decoder layer only; the seven above run over the whole target at once. The fused
    scan covers the bottom layer in training, because the attention is before the cell.
    """
    return dict(
        vocab_size=32000,
        embedding_size=1024,
        hidden_size=1024,
        encoder_layers=8,
        decoder_layers=8,
        cell_type="lstm",
        bidirectional="first",
        residual_start=3,
        context="attention",
        context_layers="all",
        attention_type="additive",
        attention_order="before_cell",
        attention_layer="bottom",
        bridge="zero",
        readout="linear",
        readout_context=False,
        dropout=0.2,
        initializer_range=0.04,
    )


@_preset
def rnmt_plus2018() -> Fields:
    """Chen et al. 2018, The Best of Both Worlds: Combining Recent Advances in Neural Machine Translation (RNMT+).

    * Section 4.1: 6 bidirectional encoder layers, whose directions are concatenated before the next layer, and 8 decoder
      layers, of 1024 layer-normalized LSTM cells per direction; word vectors of 1024; residual connections from the
      third layer on, on both sides.
    * Section 4.1: additive attention with several heads, whose query is the bottom decoder layer; its context goes to all
      decoder layers and to the softmax. 4 heads, as in the authors' released configuration (lingvo).
    * Section 4.1: dropout on word vectors and on each layer's output, 0.2 (English-French; 0.3 for English-German),
      label smoothing 0.1 over the whole vocabulary. Wordpieces, 32,000. Weights uniform in plus or minus 0.04.

    Departs: the cell is normalized as in Ba 2016, equations 20 to 22 (each product over all gates, and the cell); the
    paper normalizes each gate separately. The LSTM's output has its tanh, which the paper omits. The paper's
    projection of the encoder's states to 1024 is a linear map before the linear maps to keys and values, and is part
    of them here. No dropout on the attention weights. The decoder's first state is zero; the paper does not state it.

    Time loop: yes, for `layer_norm`, in every layer of both sides.
    """
    return dict(
        vocab_size=32000,
        embedding_size=1024,
        hidden_size=1024,
        encoder_hidden_size=1024,
        encoder_layers=6,
        decoder_layers=8,
        cell_type="lstm",
        layer_norm=True,
        bidirectional="all",
        residual_start=3,
        context="attention",
        context_layers="all",
        attention_type="multi_head_additive",
        num_attention_heads=4,
        attention_order="before_cell",
        attention_layer="bottom",
        bridge="zero",
        readout="linear",
        dropout=0.2,
        label_smoothing=0.1,
        initializer_range=0.04,
    )


@_preset
def bideep2017() -> Fields:
    """Miceli Barone et al. 2017, Deep Architectures for Neural Machine Translation: the BiDeep system.

    Sizes are those of the authors' released script bideep-bideep-rGRU-large (Nematus):

    * 4 stacked levels on both sides (section 2.2), each a deep transition (section 2.3): 2 cells a level in the
      encoder; 4 in the decoder's base level, 2 in the levels above (`decoder_upper_transition_depth`).
    * Section 2.2.1: the encoder is two stacks that alternate their direction at every level (`alternating`), joined at
      the top. There are residual connections between levels.
    * Section 2.1: the base level is a conditional GRU: the query is the state after its first cell, and the context enters
      its second cell (`before_cell` with a transition). Section 2.2.2, rGRU: the context also enters the levels above.
    * Layer-normalized GRUs of 1024 cells (per direction), the reset gate after the recurrent product, as in Nematus.
    * Additive attention; s_0 = tanh(W mean(h) + b) for each level (`mean`); deep output
      tanh(U s + V E y + C c) of 512 units like the word vectors, which the output layer shares; 90,000 subwords.

    Departs: each level's input and recurrent product are normalized as in Ba 2016; Nematus also normalizes the products
    of attention and readout. No dropout, as in the script.

    Time loop: yes, for `layer_norm` and the transitions, in every level of both sides.
    """
    return dict(
        vocab_size=90000,
        embedding_size=512,
        hidden_size=1024,
        encoder_hidden_size=1024,
        encoder_layers=4,
        decoder_layers=4,
        cell_type="gru",
        gru_reset="after",
        layer_norm=True,
        encoder_transition_depth=2,
        decoder_transition_depth=4,
        decoder_upper_transition_depth=2,
        bidirectional="alternating",
        residual_start=2,
        context="attention",
        context_layers="all",
        attention_type="additive",
        attention_order="before_cell",
        attention_layer="bottom",
        bridge="mean",
        readout="tanh",
        readout_size=512,
        readout_embedding=True,
        tie_word_embeddings=True,
    )


@_preset
def seminar() -> Fields:
    """The seq2seq of the PyTorch tutorial (Robertson, NLP from scratch: translation), without attention.

    * EncoderRNN: one GRU layer of 256 over word vectors of 256. DecoderRNN: ReLU over the word vectors
      (`embedding_activation`), one GRU layer, a linear layer to the vocabulary.
    * The decoder's first state is the encoder's last state (`copy`).
    * Teacher forcing: `teacher_forcing_ratio` 1.0, or 0.5 with `teacher_forcing_unit="sentence"` as in the tutorial.

    Departs: the tutorial trains on one pair at a time; here the choice is drawn for each sentence of a batch. The tutorial
    takes the vocabulary sizes of its corpus; the default of 8,000 is ours.

    Time loop: none at ratio 1.0; below it one more pass over the target without gradients (`scheduled_sampling`).
    """
    return dict(
        vocab_size=8000,
        embedding_size=256,
        hidden_size=256,
        cell_type="gru",
        bidirectional="none",
        context="initial_state",
        bridge="copy",
        readout="linear",
        embedding_activation="relu",
    )


@_preset
def seminar_attention() -> Fields:
    """`seminar` with dot attention and a tanh layer: Luong 2015, equations 5 to 7, without input feeding.

    * The query is the new state (`after_cell`, `dot`); the linear layer to the vocabulary reads tanh(W [h; c]).

    Departs: as `seminar`.

    Time loop: none; attention runs for the whole target at once.
    """
    return {
        **seminar(),
        "context": "attention",
        "attention_type": "dot",
        "attention_order": "after_cell",
        "input_feeding": False,
        "readout": "tanh",
    }


@_preset
def multi_head() -> Fields:
    """Scaled dot-product attention with 8 heads (Vaswani et al. 2017, section 3.2.2), read by a recurrent decoder.

    Not a system of a paper, but between Luong 2015 and the Transformer: the width of 512, the 8 heads, dropout and label
    smoothing of 0.1 are those of the base Transformer (table 3); the decoder is Luong's, and its new state is the query.
    Two layers of LSTM on both sides, the encoder bidirectional; `dense` projects the encoder's final states.

    Departs: no input feeding, so that there is no time loop; with `input_feeding=True` the fused scan covers it.

    Time loop: none.
    """
    return dict(
        vocab_size=32000,
        embedding_size=512,
        hidden_size=512,
        encoder_layers=2,
        decoder_layers=2,
        cell_type="lstm",
        bidirectional="all",
        context="attention",
        attention_type="multi_head",
        num_attention_heads=8,
        attention_order="after_cell",
        input_feeding=False,
        bridge="dense",
        readout="tanh",
        dropout=0.1,
        label_smoothing=0.1,
    )


@_preset
def transformer_encoder() -> Fields:
    """The encoder of Vaswani et al. 2017, Attention Is All You Need, under a recurrent decoder.

    Chen et al. 2018 (section 5 of The Best of Both Worlds) combine the two in this way; the decoder here is that of
    `multi_head`, of one layer, and not theirs.

    * Section 3.1: 6 layers, each attention and then a feed-forward network, with a residual connection around it and layer
      normalization after it. The code is that of Marian's encoder in transformers.
    * Section 3.2.2 and table 3 (base): width 512, 8 heads, inner width 2048, ReLU, dropout 0.1.
    * Section 3.4: word vectors are multiplied by the square root of their width (`scale_embedding`).
    * Section 3.5: sinusoidal positions, the sines in the first half of a vector and the cosines in the second, where the
      paper alternates them; for the layers above that is the same up to the order of units.
    * The decoder reads the states raw (`encoder_layers=0`); its first state is tanh(W mean(states) + b).

    Departs: in the decoder. Longest source: 512 tokens (`encoder.max_position_embeddings`).

    Time loop: none.
    """
    return {
        **multi_head(),
        "encoder": dict(
            model_type="marian",
            d_model=512,
            encoder_layers=6,
            encoder_attention_heads=8,
            encoder_ffn_dim=2048,
            activation_function="relu",
            dropout=0.1,
            attention_dropout=0.0,
            activation_dropout=0.0,
            encoder_layerdrop=0.0,
            scale_embedding=True,
            max_position_embeddings=512,
            # Of Marian's decoder, which is not kept.
            decoder_layers=1,
            decoder_attention_heads=8,
            decoder_ffn_dim=8,
            decoder_start_token_id=1,
            forced_eos_token_id=None,
        ),
        "encoder_layers": 0,
        "decoder_layers": 1,
        "bridge": "mean",
    }


@_preset
def bert_encoder() -> Fields:
    """BERT (Devlin et al. 2019), frozen, under a bidirectional LSTM and a recurrent decoder.

    * Section 3 of the paper: BERT base, 12 layers of 768 units and 12 heads; its vocabulary reads the source.
    * Its states take the place of the word vectors, because a decoder that reads them raw learns worse: 16.0 against 20.1
      BLEU with 3,000 sentence pairs of Multi30k and MiniLM, one seed.
    * The decoder is Luong's: `general` attention after the cell, input feeding (section 3 of Luong et al. 2015).

    Departs: no system of a paper. From a preset alone BERT's weights are random, and of no use if frozen:
    `from_encoder_pretrained(name, preset="bert_encoder")` loads them, with the sizes of the model that it names.

    Time loop: for input feeding, in the decoder; the fused scan covers it.
    """
    return dict(
        vocab_size=8000,
        encoder=dict(model_type="bert", vocab_size=30522),
        freeze_encoder=True,
        embedding_size=256,
        hidden_size=512,
        encoder_layers=1,
        cell_type="lstm",
        bidirectional="all",
        context="attention",
        attention_type="general",
        attention_order="after_cell",
        input_feeding=True,
        bridge="dense",
        readout="tanh",
        dropout=0.2,
    )


@_preset
def xu2015() -> Fields:
    """Xu et al. 2015, Show, Attend and Tell: Neural Image Caption Generation with Visual Attention.

    Sections and equation numbers are those of the arXiv version: 4 to 7 and 12 as the authors' program cites them, 14 as others
    do.

    * Section 3.1.1: the annotations are a feature map of a pretrained network, 14 x 14 regions of 224 x 224 pixels, row by
      row; the decoder reads them raw (`encoder_layers=0`), and the network is not trained (`freeze_encoder`).
    * Section 3.1.2: an LSTM. The energies are those of a layer of tanh units over region and previous state (`additive`,
      `before_cell`); h and c start from layers over the mean region (`mean`).
    * Section 4.2.1: beta = sigmoid(f(h_{t-1})) scales the context (`context_gate="scalar"`).
    * Section 4.1, hard attention: `attention_alignment="sampled"`; without it the attention is the soft one of section 4.2.
    * Equation 14: the doubly stochastic term. The weight 1 is that of the authors' program, from memory.
    * Equation 7: L_o(E y + L_h h + L_z z), a `linear` readout of state, context and word.
    * Section 4.3: dropout; section 5: 10,000 words.

    Departs: the regions are those of ResNet-50 without its last stage (1,024 wide), where the paper has VGG (512 wide),
    which transformers lacks; the word's vector passes a matrix in equation 7 too; f_init is one layer with tanh. The
    sizes of the decoder and the rate of dropout are ours: the paper's text has none. From a preset alone the network's
    weights are random, and of no use if frozen: `from_encoder_pretrained(name, preset="xu2015")` loads them, with the
    sizes of the network that it names (a ResNet with its last stage has 7 x 7 regions).

    Time loop: for the gate, in the decoder; the fused scan covers it without (`context_gate="none"`).
    """
    return dict(
        vocab_size=10000,
        encoder=dict(
            model_type="resnet",
            embedding_size=64,
            hidden_sizes=[256, 512, 1024],
            depths=[3, 4, 6],
            layer_type="bottleneck",
        ),
        freeze_encoder=True,
        embedding_size=512,
        hidden_size=1000,
        encoder_layers=0,
        cell_type="lstm",
        context="attention",
        attention_type="additive",
        attention_size=512,
        attention_order="before_cell",
        context_gate="scalar",
        doubly_stochastic=1.0,
        bridge="mean",
        readout="linear",
        readout_size=512,
        readout_embedding=True,
        dropout=0.5,
    )


def graves2013_text() -> Fields:
    """Graves 2013, Generating Sequences With Recurrent Neural Networks, section 3: text, character by character.

    * Equations 1 to 3: the input goes to every layer, and every layer to the output (`skip_connections`; a `linear` readout of
      all layers without a product of its own). LSTM cells.
    * Section 3.2, Wikipedia (from memory): 7 layers of 700 cells, 205 characters as one-hot vectors, no dropout.

    Departs: the cell is torch's LSTM, the paper's has peephole connections (equations 7 to 11). The characters' vectors are
    learned, and as wide as the one-hot vectors of the paper. The paper bounds the gradient of each cell; here the norm of
    all gradients is bounded (`max_grad_norm`).

    Time loop: none; every layer is one fused kernel.
    """
    return dict(
        vocab_size=205,
        embedding_size=205,
        hidden_size=700,
        decoder_layers=7,
        cell_type="lstm",
        skip_connections=True,
        readout="linear",
    )


def graves2013_handwriting() -> Fields:
    """Graves 2013, Generating Sequences With Recurrent Neural Networks, section 4: handwriting prediction.

    Sections and equation numbers were read in the paper (arXiv 1308.0850).

    * Section 4.2: three layers of 400 LSTM cells; 20 mixture components, an output of 121 numbers.
    * Equations 1 to 3: the input goes to every layer, and every layer to the output (`skip_connections`; a `linear` readout of
      all layers without a product of its own). Equations 15 to 26: the density of the next point.
    * Section 4.2: offsets have the standard deviation 1 over the training set (`offset_deviation`).

    Departs: the cell is torch's LSTM, the paper's has peephole connections. Offsets keep their mean, which the paper
    subtracts. The paper clips the gradients of outputs and cells to [-100, 100] and [-10, 10]; here the exponents of the
    density are bounded (mixture_density.py) and the norm of all gradients is (`max_grad_norm`). The optimizer is the run's,
    the paper's RMSprop with momentum (equations 38 to 45). No adaptive weight noise; `weight_drop` and `dropout` are there.
    Strokes lose places that say nothing (`point_tolerance`); the paper keeps all.

    Time loop: none; every layer is one fused kernel.
    """
    return dict(hidden_size=400, decoder_layers=3, skip_connections=True, readout="linear", mixture_components=20)


def graves2013_synthesis() -> Fields:
    """Graves 2013, Generating Sequences With Recurrent Neural Networks, section 5: handwriting synthesis.

    Sections and equation numbers were read in the paper (arXiv 1308.0850).

    * Section 5.2: as similar as possible to the prediction network (`graves2013_handwriting`): three layers of 400 LSTM
      cells, 20 mixture components; characters are one-hot vectors, the window has 10 components.
    * Section 5.1: the window's parameters are outputs of the first layer (equations 46 to 51); its vector goes to all layers,
      to the first one with a delay of one step (equations 52 and 53).
    * Section 5.3: a writing ends when the window has passed the last character, here with the stroke that it then is in.

    Departs: as `graves2013_handwriting`. A new window moves slowly (window_attention.py), of which the paper says nothing.
    The paper has 57 characters, with digits and most punctuation as one; the alphabet here is that of the training set.

    Time loop: none; the first layer and its window are in the scan.
    """
    return graves2013_handwriting() | dict(window_components=10, alphabet=LETTERS)


LETTERS = "abcdefghijklmnopqrstuvwxyz"


def lin2017() -> Fields:
    """Lin et al. 2017, A Structured Self-attentive Sentence Embedding.

    The paper's text was not at hand: sizes and sections are from memory.

    * Section 2.1: a bidirectional LSTM; 30 hops (r) of a two-layer attention with 350 units (d_a).
    * Section 2.2: the penalty on hops that read the same words, with coefficient 1.0 (Yelp).
    * Section 4 and appendix: 300 units per direction, word vectors of 100, a hidden layer of 3,000 ReLU units (Yelp), dropout
      0.5.

    Departs: the first layer of the attention has a bias. The paper starts from vectors of word2vec; here they are random.
    """
    return dict(
        embedding_size=100,
        encoder_hidden_size=300,
        cell_type="lstm",
        bidirectional="all",
        pooling="attention",
        attention_size=350,
        attention_hops=30,
        hop_penalty=1.0,
        classifier_size=3000,
        dropout=0.5,
    )


def yang2016() -> Fields:
    """Yang et al. 2016, Hierarchical Attention Networks for Document Classification.

    The paper's text was not at hand: sizes and sections are from memory and from summaries of others. `sentence_token_id`
    must be given, or the model has one level.

    * Section 2.2: a bidirectional GRU over the words of a sentence and attention over its states; the same over the
      sentences of a document; a softmax.
    * Section 3.3: word vectors of 200, 50 units per direction, so that sentences and documents have 100, as the context
      vectors have.

    Departs: the paper starts from vectors of word2vec; here they are random.
    """
    return dict(
        embedding_size=200,
        encoder_hidden_size=50,
        cell_type="gru",
        bidirectional="all",
        pooling="attention",
        attention_size=100,
    )


# Of `RnnCausalConfig`, `RnnHandwritingConfig` and `RnnClassifierConfig`.
CAUSAL_PRESETS = {"graves2013_text": graves2013_text}
HANDWRITING_PRESETS = {"graves2013_handwriting": graves2013_handwriting, "graves2013_synthesis": graves2013_synthesis}
CLASSIFIER_PRESETS = {"lin2017": lin2017, "yang2016": yang2016}
