"""The small letters of two single-stroke fonts, roman and script.

The Hershey Fonts were originally created by Dr. A. V. Hershey while working at the U. S. National Bureau of Standards.
The format of the font data was originally created by James Hurt, Cognition, Inc., 900 Technology Park Drive, Billerica,
MA 01821 (mit-eddie!ci-dandelion!hurt). They may be used by anyone for any purpose, and converted into any format but
that of the U.S. NTIS, where these acknowledgements are distributed with them.

A letter is a text of pairs of characters: the left and the right side of the letter, then the places (x, y) of the pen,
y down, each number as the distance of a character from "R"; the pair " R" lifts the pen.
"""

ROMAN: dict[str, str] = {
    "a": "I\\XMX[ RXPVNTMQMONMPLSLUMXOZQ[T[VZXX",
    "b": "H[LFL[ RLPNNPMSMUNWPXSXUWXUZS[P[NZLX",
    "c": "I[XPVNTMQMONMPLSLUMXOZQ[T[VZXX",
    "d": "I\\XFX[ RXPVNTMQMONMPLSLUMXOZQ[T[VZXX",
    "e": "I[LSXSXQWOVNTMQMONMPLSLUMXOZQ[T[VZXX",
    "f": "MYWFUFSGRJR[ ROMVM",
    "g": "I\\XMX]W`VaTbQbOa RXPVNTMQMONMPLSLUMXOZQ[T[VZXX",
    "h": "I\\MFM[ RMQPNRMUMWNXQX[",
    "i": "NVQFRGSFREQF RRMR[",
    "j": "MWRFSGTFSERF RSMS^RaPbNb",
    "k": "IZMFM[ RWMMW RQSX[",
    "l": "NVRFR[",
    "m": "CaGMG[ RGQJNLMOMQNRQR[ RRQUNWMZM\\N]Q][",
    "n": "I\\MMM[ RMQPNRMUMWNXQX[",
    "o": "I\\QMONMPLSLUMXOZQ[T[VZXXYUYSXPVNTMQM",
    "p": "H[LMLb RLPNNPMSMUNWPXSXUWXUZS[P[NZLX",
    "q": "I\\XMXb RXPVNTMQMONMPLSLUMXOZQ[T[VZXX",
    "r": "KXOMO[ ROSPPRNTMWM",
    "s": "J[XPWNTMQMNNMPNRPSUTWUXWXXWZT[Q[NZMX",
    "t": "MYRFRWSZU[W[ ROMVM",
    "u": "I\\MMMWNZP[S[UZXW RXMX[",
    "v": "JZLMR[ RXMR[",
    "w": "G]JMN[ RRMN[ RRMV[ RZMV[",
    "x": "J[MMX[ RXMM[",
    "y": "JZLMR[ RXMR[P_NaLbKb",
    "z": "J[XMM[ RMMXM RM[X[",
}
SCRIPT: dict[str, str] = {
    "a": "L\\UUTSRRPRNSMTLVLXMZO[Q[SZTXVRUWUZV[W[YZZY\\V",
    "b": "M[MVOSRNSLTITGSFQGPIOMNTNZO[P[RZTXUUURVVWWYW[V",
    "c": "MXTTTSSRQROSNTMVMXNZP[S[VYXV",
    "d": "L\\UUTSRRPRNSMTLVLXMZO[Q[SZTXZF RVRUWUZV[W[YZZY\\V",
    "e": "NXOYQXRWSUSSRRQROSNUNXOZQ[S[UZVYXV",
    "f": "OWOVSQUNVLWIWGVFTGSIQQNZKaJdJfKgMfNcOZP[R[TZUYWV",
    "g": "L[UUTSRRPRNSMTLVLXMZO[Q[SZTY RVRTYPdOfMgLfLdMaP^S\\U[XY[V",
    "h": "M\\MVOSRNSLTITGSFQGPIOMNSM[ RM[NXOVQSSRURVSVUUXUZV[W[YZZY\\V",
    "i": "PWSMSNTNTMSM RPVRRPXPZQ[R[TZUYWV",
    "j": "PWSMSNTNTMSM RPVRRLdKfIgHfHdIaL^O\\Q[TYWV",
    "k": "M[MVOSRNSLTITGSFQGPIOMNSM[ RM[NXOVQSSRURVSVUTVQV RQVSWTZU[V[XZYY[V",
    "l": "OWOVQSTNULVIVGUFSGRIQMPTPZQ[R[TZUYWV",
    "m": "E^EVGSIRJSJTIXH[ RIXJVLSNRPRQSQTPXO[ RPXQVSSURWRXSXUWXWZX[Y[[Z\\Y^V",
    "n": "J\\JVLSNROSOTNXM[ RNXOVQSSRURVSVUUXUZV[W[YZZY\\V",
    "o": "LZRRPRNSMTLVLXMZO[Q[SZTYUWUUTSRRQSQURWTXWXYWZV",
    "p": "KZKVMSNQMUGg RMUNSPRRRTSUUUWTYSZQ[ RMZO[R[UZWYZV",
    "q": "L[UUTSRRPRNSMTLVLXMZO[Q[SZ RVRUUSZPaOdOfPgRfScS\\U[XY[V",
    "r": "MZMVOSPQPSSSTTTVSYSZT[U[WZXYZV",
    "s": "NYNVPSQQQSSVTXTZR[ RNZP[T[VZWYYV",
    "t": "OXOVQSSO RVFPXPZQ[S[UZVYXV RPNWN",
    "u": "L[LVNRLXLZM[O[QZSXUU RVRTXTZU[V[XZYY[V",
    "v": "L[LVNRMWMZN[O[RZTXUUUR RURVVWWYW[V",
    "w": "I^LRJTIWIYJ[L[NZPX RRRPXPZQ[S[UZWXXUXR RXRYVZW\\W^V",
    "x": "JZJVLSNRPRQSQZR[U[XYZV RWSVRTRSSOZN[L[KZ",
    "y": "L[LVNRLXLZM[O[QZSXUU RVRPdOfMgLfLdMaP^S\\U[XY[V",
    "z": "LZLVNSPRRRTTTVSXQZN[P\\Q^QaPdOfMgLfLdMaP^S\\WYZV",
}
