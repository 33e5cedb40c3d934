"""Alert packets: from a candidate and its history to Avro, streams and VOEvent."""
