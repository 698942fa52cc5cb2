#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Create the instance profiles that aws.yaml names. All nodes may read and write the given buckets,
# and the head node may start and terminate workers. Run it once per account. It needs the AWS command
# line and permission to create roles.
#
#     cluster/aws_roles.sh my-images my-features
set -euo pipefail

resources=""
for bucket in "${@:?give the names of the buckets}"; do
    resources+="\"arn:aws:s3:::$bucket\", \"arn:aws:s3:::$bucket/*\", "
done

allow() { # ROLE NAME ACTIONS RESOURCES
    aws iam put-role-policy --role-name "$1" --policy-name "$2" --policy-document \
        "{\"Version\": \"2012-10-17\",
          \"Statement\": [{\"Effect\": \"Allow\", \"Action\": [$3], \"Resource\": [$4]}]}"
}

for role in ray-embed-head ray-embed-worker; do
    aws iam create-role --role-name "$role" --assume-role-policy-document \
        '{"Version": "2012-10-17",
          "Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole",
                         "Principal": {"Service": "ec2.amazonaws.com"}}]}' > /dev/null
    allow "$role" buckets \
        '"s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:DeleteObject",
         "s3:AbortMultipartUpload", "s3:GetBucketLocation"' "${resources%, }"
    aws iam create-instance-profile --instance-profile-name "$role" > /dev/null
    aws iam add-role-to-instance-profile --instance-profile-name "$role" --role-name "$role"
done
aws iam attach-role-policy --role-name ray-embed-head \
    --policy-arn arn:aws:iam::aws:policy/AmazonEC2FullAccess
allow ray-embed-head pass-worker '"iam:PassRole"' '"arn:aws:iam::*:role/ray-embed-worker"'
