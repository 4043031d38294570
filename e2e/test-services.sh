#!/usr/bin/env bash
# PostgreSQL, Redis and an API server for `cargo test`, on ports and folders of their own.
. "$(dirname "$0")/lib.sh"
dir=target/croft-test
$cluster apt services
$cluster services up --dir $dir
$cluster control-plane up --dir $dir
. $dir/env
{
    cat $dir/env
    echo "export CROFT_TEST_POSTGRES_URL='$CROFT_POSTGRES_URL'"
    echo "export CROFT_TEST_REDIS_URL='$CROFT_REDIS_URL'"
    echo "export CROFT_TEST_KUBECONFIG='$KUBECONFIG'"
} >$dir/test-env.unfinished
mv $dir/test-env.unfinished $dir/test-env
echo "Ready: source $dir/test-env"
