"""QiMeng-TVM: tensor operators near peak, for Apache TVM."""
