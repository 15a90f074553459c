"""What `grpcurl -plaintext -d JSON host:port package.Service/Method` does, for Predict."""

import argparse

import grpc
from google.protobuf import json_format
from tensorflow_serving.apis import predict_pb2

parser = argparse.ArgumentParser()
parser.add_argument("-plaintext", action="store_true", required=True)
parser.add_argument("-d", dest="data", required=True)
parser.add_argument("target")
parser.add_argument("method")
args = parser.parse_args()
request = json_format.Parse(args.data, predict_pb2.PredictRequest())
with grpc.insecure_channel(args.target) as channel:
    call = channel.unary_unary(
        f"/{args.method}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=predict_pb2.PredictResponse.FromString,
    )
    answer = call(request, timeout=60)
    print(json_format.MessageToJson(answer, preserving_proto_field_name=True))
