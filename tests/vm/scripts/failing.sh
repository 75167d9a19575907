#!/bin/sh
echo this is said before it fails
exit 7
