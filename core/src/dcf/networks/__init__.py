"""Networks: functions of explicit weights with an embedding, for any image size and channel count."""
